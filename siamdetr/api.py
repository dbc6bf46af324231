"""The public API: `SiamDETR`, a detector with classes and preprocessing, and `load` for any file.

This module imports no PyTorch, so that exported files open in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from siamdetr.errors import CheckpointError
from siamdetr.files import Kind, kind_of
from siamdetr.images.preprocessing import ImageLike
from siamdetr.inference.predictor import Predictor, Progress
from siamdetr.system.extras import missing_package

if TYPE_CHECKING:
    import supervision as sv
    import torch

    from siamdetr.pytorch_model import SiamDETR

Backend = Literal["pytorch", "onnxruntime", "openvino", "tensorrt", "auto"]
_BACKENDS: dict[Kind, tuple[Backend, ...]] = {  # that run a kind of file, the usual one first
    "onnx": ("onnxruntime", "openvino"),
    "bundle": ("onnxruntime", "openvino", "tensorrt"),
    "engine": ("tensorrt",),
}


class Model(Predictor, Protocol):
    """A model opened by `load`, in any runtime."""

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The data set's own ids in label order; empty when not known."""

    @property
    def class_agnostic(self) -> bool:
        """Whether the one class is any object: the model was pretrained and not finetuned."""

    @property
    def threshold_from(self) -> str:
        """How the threshold was chosen, for people; empty: nobody chose it."""

    @property
    def info(self) -> dict[str, Any]:
        """The facts of the model, in plain values."""

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        threshold: float | None = None,
        batch_size: int = 8,
        *,
        progress: Progress | None = None,
    ) -> sv.Detections | list[sv.Detections]:
        """Detections of one image, or of each of a sequence."""


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    backend: Backend | None = None,
    threads: int | None = None,
) -> SiamDETR | Model:
    """Open any of our files for prediction.

    Args:
        path: a run folder (its best weights, else its last), a .safetensors file, an .onnx file, a bundle folder or its
            model.engine.
        device: where it runs: "cpu", "cuda", "cuda:N", or "auto": the GPU where there is one.
        backend: what runs it; None: PyTorch for our model files, ONNX Runtime for .onnx files and bundles, TensorRT for
            engines. "auto": as None, but .onnx files and bundles on the CPU take the fastest of the installed runtimes,
            which is timed once for about two seconds and kept beside the user's settings.
        threads: of exported files on the CPU; None: one for each core that this process may use.
    Raises:
        CheckpointError: not there, not ours, or damaged.
        ValueError: the backend cannot run such a file.
        MissingPackageError: the backend is not installed.

    Example:
        >>> import siamdetr
        >>> model = siamdetr.load("detector.safetensors")
        >>> model.class_names
        ('cat', 'dog')
        >>> model.info["variant"]
        'conditional'
    """
    try:
        return _load(Path(path), device, backend, threads)
    except ModuleNotFoundError as error:
        raise missing_package(error) or error from None


def resolve_backend(
    path: str | Path, *, device: str = "cpu", backend: Backend | None = None, threads: int | None = None
) -> tuple[Backend, int | None]:
    """The backend and the threads with which `load` opens a file; arguments and errors as there."""
    path = Path(path)
    backends = _BACKENDS.get(kind_of(path), ("pytorch",))
    if backend == "auto" and backends[0] == "onnxruntime":
        from siamdetr.export.timing.backend_choice import choose_backend

        return choose_backend(path, device=device, threads=threads)
    if backend is None or backend == "auto":
        return backends[0], threads
    if backend not in backends:
        raise ValueError(f"{path}: backend '{backend}' does not run such a file; take {' or '.join(backends)}")
    return backend, threads


def _load(path: Path, device: str | torch.device, backend: Backend | None, threads: int | None) -> SiamDETR | Model:
    backend, threads = resolve_backend(path, device=str(device), backend=backend, threads=threads)
    if backend == "tensorrt":
        from siamdetr.export.engine import EngineDetector

        return EngineDetector(path, device=str(device))
    if backend in ("onnxruntime", "openvino"):
        from siamdetr.export.runtime import OnnxDetector

        return OnnxDetector(path, device=str(device), backend=backend, threads=threads)
    from siamdetr.pytorch_model import SiamDETR

    return SiamDETR.load(path, device=device)


def __getattr__(name: str) -> Any:
    """Import `SiamDETR`, and with it PyTorch, on first use."""
    if name == "SiamDETR":
        from siamdetr.pytorch_model import SiamDETR

        return SiamDETR
    raise AttributeError(f"module 'siamdetr.api' has no attribute {name!r}")


__all__ = ["Backend", "CheckpointError", "Kind", "Model", "SiamDETR", "kind_of", "load", "resolve_backend"]
