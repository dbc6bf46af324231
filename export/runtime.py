"""An exported model that predicts like the `SiamDETR` that it came from. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siamdetr.errors import ExportError
from siamdetr.export.bundle import ModelCard, find_onnx, read_card
from siamdetr.export.sessions import Array, OnnxBackend, OnnxRuntimeSession, OpenVinoSession
from siamdetr.images.preprocessing import ImageLike, Prepared, preprocess
from siamdetr.inference.attention_maps import RecordedInspection, inspection_of_outputs
from siamdetr.inference.opened_model import OpenedModel
from siamdetr.inference.predictor import ScoredBoxes

_SESSIONS: Mapping[str, Callable[..., OnnxRuntimeSession | OpenVinoSession]] = {
    "onnxruntime": OnnxRuntimeSession,
    "openvino": OpenVinoSession,
}


class OnnxDetector(OpenedModel):
    """A detector in an ONNX file.

    Args:
        path: an .onnx file that `siamdetr export` made, or its bundle folder.
        device: "cpu", "cuda", "cuda:N", or "auto": CUDA if available, else the CPU. OpenVINO takes "cpu" and "auto".
        threads: of one operator on the CPU; None: one per core.
        backend: what computes it: "onnxruntime" or "openvino".
    Raises:
        ExportError: no such file, damaged, not ours; or CUDA was asked for and ONNX Runtime fell back to the CPU, which
            it does without raising.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
        backend: OnnxBackend = "onnxruntime",
    ) -> None:
        self.path = find_onnx(path)
        self._session = _SESSIONS[backend](self.path, device=device, threads=threads)
        self._facts: ModelCard = read_card(self._session.metadata, self.path)

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers, best first."""
        return self._session.providers

    @property
    def runtime(self) -> str:
        """Name and version of the runtime."""
        return self._session.runtime

    @property
    def card(self) -> ModelCard:
        """The metadata of the file."""
        return self._facts

    @property
    def info(self) -> dict[str, Any]:
        """The facts of the model, in plain values."""
        return {
            "kind": "ONNX model",
            "file": str(self.path),
            "runtime": self.runtime,
            "providers": list(self.providers),
            **self._facts.to_json(),
        }

    def predict_batch(self, batch: Prepared) -> ScoredBoxes:
        """All scored boxes of a batch of images of one size.

        Raises:
            ValueError: the batch is padded, and the graph has no input for that.
        """
        boxes, scores, labels = self.run(("boxes", "scores", "labels"), batch)
        return ScoredBoxes(scores=scores, labels=labels, boxes=boxes)

    def run(self, outputs: tuple[str, ...], batch: Prepared) -> list[Array]:
        """Any outputs of the graph on a batch of images of one size."""
        return self._session.run(outputs, feed_of(batch, self._session.input_names))

    def inspect(self, image: ImageLike) -> RecordedInspection:
        """Detections of one image, with the decoder's attention if the file has an output `attention`.

        Raises:
            ImageError: the image cannot be used.
        """
        batch, names = preprocess([image], self.preprocessing), tuple(self._facts.outputs)
        return inspection_of_outputs(dict(zip(names, self.run(names, batch), strict=True)), batch)

    def attention(self, image: ImageLike) -> NDArray[np.float32]:
        """The cross-attention of the last decoder layer.

        Returns:
            [1, heads, Q, h, w], as `SiamDETR.attention` with its last layer alone.
        Raises:
            ExportError: the file was exported without attention.
        """
        if "attention" not in self._facts.outputs:
            raise ExportError(f"{self.path}: has no attention; export it with `siamdetr export --attention`")
        (maps,) = self.run(("attention",), preprocess([image], self.preprocessing))
        return maps


def feed_of(batch: Prepared, input_names: tuple[str, ...]) -> dict[str, Array]:
    """The inputs of a graph for a batch.

    Raises:
        ValueError: the batch is padded, and the graph has no input for that.
    """
    feed: dict[str, Array] = {"images": batch.images, "original_sizes": batch.original_sizes}
    if "valid_sizes" in input_names:
        feed["valid_sizes"] = batch.sizes
    elif batch.padding is not None:
        raise ValueError("OnnxDetector: got a padded batch, expected images of one size; see preprocessing.batches")
    return feed
