"""An exported model under ONNX Runtime: predicts like the `SiamDETR` that it came from. Imports no torch itself."""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime

from siamdetr.evaluation.inspection import RecordedInspection, inspection_of_outputs
from siamdetr.evaluation.predictor import Progress, ScoredBoxes, predict
from siamdetr.export.bundle import METADATA_KEY, ExportError, find_onnx, read_card
from siamdetr.preprocessing import ImageLike, Prepared, PreprocessingSpec, preprocess

if TYPE_CHECKING:
    import supervision as sv

logger = logging.getLogger(__name__)

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_ERRORS_ONLY = 3  # ONNX Runtime's log levels run from 0 (verbose) to 4 (fatal)


class OnnxDetector:
    """A detector in an ONNX file.

    Args:
        path: an .onnx file that `siamdetr export` made, or its bundle folder.
        device: "cpu", "cuda", "cuda:N", or "auto": CUDA where it is at hand, else the CPU.
        threads: of one operator on the CPU; None: one a core.
    Raises:
        ExportError: no such file, damaged, not ours; or CUDA was asked for and ONNX Runtime fell back to the CPU, which it
            does without raising.
    """

    def __init__(self, path: str | Path, *, device: str = "cpu", threads: int | None = None) -> None:
        self.path = find_onnx(path)
        wanted = _wanted_providers(device)
        self._session = _open(self.path, wanted, threads)
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        _check_providers(wanted, self.providers, required=device != "auto")
        entries = self._session.get_modelmeta().custom_metadata_map
        self._card = read_card(entries.get(METADATA_KEY), self.path)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in label order."""
        return self._card.class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The data set's own ids in label order; empty when not known."""
        return self._card.category_ids

    @property
    def preprocessing(self) -> PreprocessingSpec:
        """How images become the graph's input."""
        return self._card.preprocessing

    @property
    def info(self) -> dict[str, Any]:
        """What the model is, in plain values."""
        return {"kind": "ONNX model", "file": str(self.path), "providers": list(self.providers), **self._card.to_json()}

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        threshold: float = 0.5,
        batch_size: int = 8,
        *,
        progress: Progress | None = None,
    ) -> sv.Detections | list[sv.Detections]:
        """Detections of one image, or a list of them for a sequence; as `SiamDETR.predict`."""
        return predict(self, images, threshold=threshold, batch_size=batch_size, progress=progress)

    def predict_batch(self, batch: Prepared) -> ScoredBoxes:
        """All scored boxes of a batch of images of one size.

        Raises:
            ValueError: the batch is padded, which the graph does not know of.
        """
        boxes, scores, labels = self._session.run(["boxes", "scores", "labels"], _feed(batch))
        return ScoredBoxes(scores=scores, labels=labels, boxes=boxes)

    def inspect(self, image: ImageLike) -> RecordedInspection:
        """What is found in an image, with the decoder's attention where the file has an output of that name.

        Raises:
            ImageError: the image cannot be used.
        """
        batch = preprocess([image], self.preprocessing)
        names = [output.name for output in self._session.get_outputs()]
        return inspection_of_outputs(dict(zip(names, self._session.run(names, _feed(batch)), strict=True)), batch)


def _feed(batch: Prepared) -> dict[str, Any]:
    if batch.padding is not None:
        raise ValueError("OnnxDetector: got a padded batch, expected images of one size; see preprocessing.batches")
    return {"images": batch.images, "original_sizes": batch.original_sizes}


def _wanted_providers(device: str) -> list[Any]:
    if device == "cpu" or (device == "auto" and not _cuda_at_hand()):
        return [_CPU]
    if device == "auto":
        return [_CUDA, _CPU]
    kind, _, number = device.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise ExportError(f"device: got '{device}', expected cpu, cuda, cuda:N or auto")
    return [(_CUDA, {"device_id": int(number or 0)}), _CPU]


def _open(path: Path, providers: list[Any], threads: int | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), sess_options=options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no base but this
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"{path}: ONNX Runtime cannot open it ({reason}); is it whole? Export it again") from error


def _check_providers(wanted: list[Any], actual: Sequence[str], *, required: bool) -> None:
    """ONNX Runtime falls back without raising; `get_available_providers` names CUDA even where there is no GPU."""
    names = [provider if isinstance(provider, str) else provider[0] for provider in wanted]
    if names[0] in actual:
        return
    text = (
        f"asked ONNX Runtime for {names[0]}, got {', '.join(actual)}: it fell back in silence. It needs an NVIDIA GPU, "
        "onnxruntime-gpu, and the CUDA and cuDNN versions of its release notes; or take device='cpu'"
    )
    if required:
        raise ExportError(text)
    logger.warning("%s", text)


def _cuda_at_hand() -> bool:
    """Whether the driver answers; asking ONNX Runtime itself would write to the terminal."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except OSError:
        return False
