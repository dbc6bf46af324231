"""The fastest runtime is measured once, and the answer is kept beside the user's settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.exported import export_variant

import siamdetr
from siamdetr.export.runtime import OnnxDetector
from siamdetr.export.timing import backend_choice
from siamdetr.export.timing.backend_choice import Choice, cache_file, choose_backend, fastest


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_variant("conditional", tmp_path_factory.mktemp("conditional")).folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_choice_is_the_least_median_and_lies_outside_the_bundle(bundle: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in bundle.iterdir())
    choice = fastest(bundle, threads=1)
    assert choice.milliseconds[f"{choice.backend}, 1 threads"] == min(choice.milliseconds.values())
    assert cache_file().is_relative_to(tmp_path)
    assert sorted(path.name for path in bundle.iterdir()) == before


def test_the_second_time_nothing_is_timed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Choice("openvino", 1, {"openvino, 1 threads": 2.0, "onnxruntime, 1 threads": 3.0})
    monkeypatch.setattr(backend_choice, "_measure", lambda file, counts: wanted)
    assert fastest(bundle, threads=1) == wanted

    def timed(file: Path, counts: list[int]) -> Choice:
        raise AssertionError("measured again")

    monkeypatch.setattr(backend_choice, "_measure", timed)
    assert fastest(bundle, threads=1) == wanted
    assert choose_backend(bundle, threads=1) == ("openvino", 1)
    with pytest.raises(AssertionError, match="measured again"):
        fastest(bundle, threads=2)  # another question
    monkeypatch.setattr(backend_choice, "_versions", lambda: {"onnxruntime": "9.9"})
    with pytest.raises(AssertionError, match="measured again"):
        fastest(bundle, threads=1)


@pytest.mark.parametrize("damage", ["{", "[]", json.dumps({"a": {"backend": 1}})])
def test_a_damaged_cache_is_measured_anew(bundle: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text(damage)
    wanted = Choice("onnxruntime", 1, {"onnxruntime, 1 threads": 2.0})
    monkeypatch.setattr(backend_choice, "_measure", lambda file, counts: wanted)
    assert fastest(bundle, threads=1) == wanted
    assert json.loads(cache_file().read_text())


def test_auto_opens_what_was_chosen(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_choice, "_measure", lambda file, counts: Choice("onnxruntime", 1, {}))
    opened = siamdetr.load(bundle, backend="auto")
    assert isinstance(opened, OnnxDetector)
    assert opened.runtime.startswith("ONNX Runtime")
    assert choose_backend(bundle, device="cuda:1", threads=3) == ("onnxruntime", 3)
