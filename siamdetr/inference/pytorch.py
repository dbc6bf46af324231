"""The PyTorch runtime: a detector, its classes and its preprocessing behind the `Predictor` protocol."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from siamdetr.images.normalize import normalize_images
from siamdetr.images.preprocessing import Prepared, PreprocessingSpec
from siamdetr.inference.predictor import DEFAULT_THRESHOLD, ScoredBoxes
from siamdetr.models.backbone.body import fold_batchnorm
from siamdetr.models.compiled import compile_part, compile_parts
from siamdetr.models.detector import Detector, Memory, Outputs
from siamdetr.models.postprocess import postprocess

logger = logging.getLogger(__name__)


class PyTorchPredictor:
    """Predicts with a detector in evaluation mode, on the device that it is on.

    The backbone runs as a copy with folded batch norms, which takes a third less time on a CPU. The copy is made again
    when the detector's weights have changed.

    Args:
        detector: its mode is restored after every call.
        class_names: as many as the detector has classes.
        preprocessing: how images become its input.
        threshold: the score from which a box counts where nobody names one.
    Raises:
        ValueError: the number of names is not the detector's.
    """

    def __init__(
        self,
        detector: Detector,
        class_names: tuple[str, ...],
        preprocessing: PreprocessingSpec,
        *,
        threshold: float = DEFAULT_THRESHOLD,
    ) -> None:
        if len(class_names) != detector.settings.num_classes:
            raise ValueError(
                f"predictor: got {len(class_names)} class names for a detector of {detector.settings.num_classes} classes; "
                "give one name a class"
            )
        self.detector = detector
        self.class_names = class_names
        self.preprocessing = preprocessing
        self.threshold = threshold
        self._compiler: str | None = None  # the backend of torch.compile
        self._folded: nn.Module | None = None
        self._folded_from: tuple[tuple[int, int], ...] = ()

    @property
    def device(self) -> torch.device:
        """The device of the detector."""
        return next(self.detector.parameters()).device

    def compile(self, *, backend: str = "inductor") -> None:
        """Compile the detector, in place, at the first batch; arguments as of `compile_parts`."""
        compile_parts(self.detector, backend=backend)
        self._compiler, self._folded = backend, None

    def predict_batch(self, batch: Prepared) -> ScoredBoxes:
        """Scored boxes of a batch of prepared images."""
        with evaluating(self.detector), torch.inference_mode():
            return self.score(self.forward(batch), batch)[0]

    def forward(self, batch: Prepared) -> Outputs:
        """The detector's own outputs, of every decoder layer; the caller chooses mode and gradients."""
        return self.encode_and_decode(batch)[1]

    def encode_and_decode(self, batch: Prepared) -> tuple[Memory, Outputs]:
        """As `forward`, and the encoded images."""
        images, padding = normalize_prepared(batch, self.preprocessing, self.device)
        memory = self.detector.encode_features(self._backbone()(images), padding)
        return memory, self.detector.decode(self.detector.queries(len(batch)), memory)

    def score(self, outputs: Outputs, batch: Prepared) -> tuple[ScoredBoxes, NDArray[np.int64]]:
        """The scored boxes of the last layer's outputs, and [B, K] the query of each."""
        found = postprocess(
            outputs.logits[-1],
            outputs.boxes[-1],
            _to_device(batch.original_sizes, self.device),
            classifier=self.detector.settings.classifier,
            top_k=self.detector.settings.most_detections,
        )
        # One transfer: numbers of labels and queries are exact in float32.
        columns = [one[..., None].float() for one in (found.scores, found.labels, found.queries)]
        packed = torch.cat([*columns, found.boxes.float()], dim=-1).cpu().numpy()  # [B, K, 7]
        scored = ScoredBoxes(
            scores=packed[..., 0], labels=packed[..., 1].astype(np.int64), boxes=np.ascontiguousarray(packed[..., 3:])
        )
        return scored, packed[..., 2].astype(np.int64)

    def _backbone(self) -> nn.Module:
        backbone = self.detector.backbone
        tensors = [*backbone.parameters(), *backbone.buffers()]
        state = tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)
        if self._folded is None or state != self._folded_from:
            try:
                self._folded = fold_batchnorm(backbone)
                if self._compiler is not None:
                    compile_part(self._folded, backend=self._compiler)
            except ValueError as error:
                logger.warning("The backbone runs unfolded: %s", error)
                self._folded = backbone
            self._folded_from = state
        return self._folded


def normalize_prepared(
    batch: Prepared, spec: PreprocessingSpec, device: torch.device | str
) -> tuple[Tensor, Tensor | None]:
    """Inputs of a detector: float images [B, 3, H, W], 0 where padded, and padding [B, H, W] or None."""
    images = normalize_images(_to_device(batch.images, device), spec.mean, spec.std)
    if batch.padding is None:
        return images, None
    padding = _to_device(batch.padding, device)
    return images.masked_fill_(padding[:, None], 0.0), padding


def _to_device(array: NDArray[Any], device: torch.device | str) -> Tensor:
    """Copy without waiting: page-locked memory may be read while the host continues."""
    tensor = torch.from_numpy(array)
    cuda = torch.device(device).type == "cuda"
    return tensor.pin_memory().to(device, non_blocking=True) if cuda else tensor.to(device)


@contextmanager
def evaluating(detector: nn.Module) -> Iterator[None]:
    """Put a detector into evaluation mode (no dropout) inside the block, and restore its mode afterwards."""
    was_training = detector.training
    detector.eval()
    try:
        yield
    finally:
        detector.train(was_training)
