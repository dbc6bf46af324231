"""Packages that the core does without: which extra brings each, said where one is missing."""

from __future__ import annotations

import importlib.util

from siamdetr.errors import MissingPackageError

_EXTRAS = {  # module: (extra, what it is for)
    "av": ("video", "reading and writing videos"),
    "cv2": ("proposals", "pretraining's views and proposals, and drawn data"),
    "fastapi": ("serve", "the server"),
    "gradio": ("demo", "the demo"),
    "huggingface_hub": ("hub", "models of the Hugging Face hub"),
    "httptools": ("serve", "the server"),
    "ml_dtypes": ("export", "exporting"),
    "onnx": ("export", "exporting, and changing exported files"),
    "onnxruntime": ("export", "running exported files"),
    "onnxscript": ("export", "exporting"),
    "onnxslim": ("export", "exporting"),
    "openvino": ("openvino", "running exported files with OpenVINO"),
    "prometheus_client": ("serve", "the server"),
    "ray": ("study", "work on a cluster"),
    "starlette": ("serve", "the server and the demo"),
    "uvicorn": ("serve", "the server"),
}


def require(module: str) -> None:
    """Make sure, before work begins, that a package of an extra is there.

    Raises:
        MissingPackageError: it is not.
    """
    if importlib.util.find_spec(module) is None:
        missing = missing_package(ModuleNotFoundError(name=module))
        assert missing is not None, f"{module} is of no extra"
        raise missing


def missing_package(error: ModuleNotFoundError) -> MissingPackageError | None:
    """What a failed import means, in a line; None: no package of an extra."""
    module = (error.name or "").partition(".")[0]
    if module not in _EXTRAS:
        return None
    extra, purpose = _EXTRAS[module]
    return MissingPackageError(
        f"{module} is not installed; {purpose} needs it: pip install 'siamdetr[{extra}]' (docs/install.md)"
    )
