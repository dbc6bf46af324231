"""Two packages of ONNX Runtime in one folder: named before a graph is opened."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import onnxruntime
import pytest

from siamdetr.errors import ExportError
from siamdetr.export.sessions import OnnxRuntimeSession


@pytest.mark.parametrize(
    ("installed", "text"),
    [
        ({"onnxruntime", "onnxruntime-gpu"}, "onnxruntime and onnxruntime-gpu are both installed into one folder"),
        ({"onnxruntime"}, "install onnxruntime-gpu in place of onnxruntime"),
    ],
    ids=["two", "one"],
)
def test_a_provider_that_vanished_is_explained(
    installed: set[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(package: str) -> str:
        if package not in installed:
            raise importlib.metadata.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ExportError, match=f"not CUDAExecutionProvider: .*{text}"):
        OnnxRuntimeSession(tmp_path / "none.onnx", device="cuda", threads=None)
    with pytest.raises(ExportError, match="cannot open it"):  # on the CPU nothing is missed
        OnnxRuntimeSession(tmp_path / "none.onnx", device="cpu", threads=None)
