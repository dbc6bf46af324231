"""The examples run as they stand, and the examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.paths import ROOT
from PIL import Image

from siamdetr.api import SiamDETR

EXAMPLES = {
    "pretrain_and_finetune": (["--steps", "2"], "finetuned/report.html"),
    "where_it_looked": ([], "attention.png"),
    "export_and_compare": ([], "manifest.json"),
}


def documented() -> list[str]:
    """Modules of the core with an example in a docstring."""
    paths = (path for path in sorted((ROOT / "siamdetr").rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]


def test_every_example_is_tested() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_leaves_its_result(name: str, tmp_path: Path) -> None:
    words, result = EXAMPLES[name]
    script = ROOT / "examples" / f"{name}.py"
    command = [sys.executable, str(script), *words, "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / result).stat().st_size > 0


def test_the_public_api_is_documented_by_examples() -> None:
    assert {"siamdetr.api", "siamdetr.boxes"} <= set(documented())


@pytest.mark.parametrize("module", documented())
def test_the_examples_of_docstrings_hold(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run in a folder with `photo.jpg` and `detector.safetensors`, whose weights are random."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    SiamDETR("conditional", backbone="resnet18", class_names=["cat", "dog"]).save("detector.safetensors")
    failed, tried = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert tried
    assert not failed, f"see `python -m doctest` on {module}"
