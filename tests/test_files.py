"""What kind of file a path is."""

from __future__ import annotations

from pathlib import Path

import pytest

from siamdetr.api import kind_of


@pytest.mark.parametrize(
    ("inside", "kind"),
    [
        (["config.yaml"], "run"),
        (["best.safetensors"], "run"),
        (["last.safetensors", "model.onnx"], "run"),
        (["model.onnx"], "bundle"),
        (["manifest.json"], "bundle"),
        (["picture.jpg"], "folder"),
        ([], "folder"),
    ],
)
def test_folders_are_known_by_what_is_in_them(tmp_path: Path, inside: list[str], kind: str) -> None:
    for name in inside:
        (tmp_path / name).touch()
    assert kind_of(tmp_path) == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.safetensors", "model"),
        ("a.ckpt", "checkpoint"),
        ("A.ONNX", "onnx"),
        ("a.engine", "engine"),
        ("a.arrow", "proposals"),
        ("a.json", "json"),
        ("a.pth", "torch"),
        ("a.jpg", "missing"),
        ("a", "missing"),
    ],
)
def test_files_are_known_by_their_names(tmp_path: Path, name: str, kind: str) -> None:
    assert kind_of(tmp_path / name) == kind
    (tmp_path / name).touch()
    assert kind_of(tmp_path / name) == ("other" if kind == "missing" else kind)
