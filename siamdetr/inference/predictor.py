"""The protocol of every runtime, and the conversion of its boxes to `supervision.Detections`.

No torch is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from siamdetr.errors import NonFiniteOutputError
from siamdetr.images.preprocessing import (
    ImageLike,
    Prepared,
    PreprocessingSpec,
    Sample,
    batches,
    group_by_size,
    is_one_image,
)

if TYPE_CHECKING:
    import supervision as sv  # imported on use: it needs 90 MB, which a server can do without

Progress = Callable[[int, int], None]  # (done, total)
DEFAULT_THRESHOLD = 0.5  # of a file that names none


@dataclass(frozen=True)
class ScoredBoxes:
    """A model's output for B images, K boxes each, before any threshold.

    Attributes:
        scores: [B, K] float32 in [0, 1], in any order.
        labels: [B, K] int64, 0..C-1.
        boxes: [B, K, 4] float32 (x0, y0, x1, y1) pixels of the original images; may reach outside them.
    """

    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float32]


class Predictor(Protocol):
    """A model with its classes and its preprocessing, in any runtime."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names, in label order."""

    @property
    def preprocessing(self) -> PreprocessingSpec:
        """How images become its input."""

    @property
    def threshold(self) -> float:
        """The score from which a box counts where nobody names one, as the file says."""

    def predict_batch(self, batch: Prepared) -> ScoredBoxes:
        """Scored boxes of a batch of prepared images."""


def predict(
    predictor: Predictor,
    images: ImageLike | Sequence[ImageLike],
    *,
    threshold: float | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> sv.Detections | list[sv.Detections]:
    """Detections of one image, or a list of them for a sequence of images.

    An image's detections do not depend on the rest of the sequence: only images of equal size are batched.

    Args:
        predictor: any runtime.
        images: one PIL image, uint8 RGB array [H, W, 3], path, content of a file as bytes, or open binary file; or a
            sequence of such.
        threshold: least score, in [0, 1]; None: the model's own.
        batch_size: images at a time.
        progress: called with (images done, images in all).
    Raises:
        ImageError: an image cannot be used.
        NonFiniteOutputError: an output is NaN or infinite.
        ValueError: the threshold is outside [0, 1].
    """
    threshold = _least_score(predictor, threshold)
    if is_one_image(images):
        return _predict_all(predictor, batches([images], predictor.preprocessing, 1), 1, threshold, progress)[0]
    several = cast("Sequence[ImageLike]", images)
    groups = batches(several, predictor.preprocessing, batch_size)
    return _predict_all(predictor, groups, len(several), threshold, progress)


def predict_samples(
    predictor: Predictor, samples: Sequence[Sample], *, threshold: float | None = None
) -> list[sv.Detections]:
    """`predict` for images that `prepare_sample` has resized; those of equal size are one batch."""
    threshold = _least_score(predictor, threshold)
    groups = group_by_size(enumerate(samples), predictor.preprocessing, max(1, len(samples)))
    return _predict_all(predictor, groups, len(samples), threshold, None)


def _least_score(predictor: Predictor, threshold: float | None) -> float:
    threshold = predictor.threshold if threshold is None else threshold
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: got {threshold}, expected a score from 0 to 1")
    return threshold


def _predict_all(
    predictor: Predictor,
    groups: Iterable[tuple[list[int], Prepared]],
    count: int,
    threshold: float,
    progress: Progress | None,
) -> list[sv.Detections]:
    import supervision as sv

    found: list[sv.Detections] = [sv.Detections.empty()] * count
    done = 0
    for positions, batch in groups:
        scored = predictor.predict_batch(batch)
        for row, position in enumerate(positions):
            size = (int(batch.original_sizes[row, 0]), int(batch.original_sizes[row, 1]))
            found[position] = to_detections(scored, row, size, class_names=predictor.class_names, threshold=threshold)
        done += len(positions)
        if progress is not None:
            progress(done, count)
    return found


def to_detections(
    scored: ScoredBoxes, row: int, size: tuple[int, int], *, class_names: Sequence[str], threshold: float
) -> sv.Detections:
    """The detections of one image that reach the threshold, best first, clipped to the image.

    Args:
        scored: of a batch.
        row: the image in that batch.
        size: (H, W) of the original image, pixels.
        class_names: C names.
        threshold: least score.
    """
    import supervision as sv

    kept = select(scored, row, size, threshold=threshold)
    return sv.Detections(
        xyxy=kept.boxes,
        confidence=kept.scores,
        class_id=kept.labels,
        data={"class_name": np.array([class_names[label] for label in kept.labels], dtype=str)},
    )


def check_finite(scored: ScoredBoxes, row: int) -> None:
    """Check that the scores and boxes of one image of a batch are finite.

    Raises:
        NonFiniteOutputError: some are NaN or infinite.
    """
    for name, values in (("scores", scored.scores[row]), ("boxes", scored.boxes[row])):
        broken = int(np.count_nonzero(~np.isfinite(values)))
        if broken:
            raise NonFiniteOutputError(
                f"the model answers with {broken} of {values.size} {name} that are not finite numbers; its weights are damaged, or "
                "its arithmetic overflows in half precision: export it again with the gate, or in fp32"
            )


@dataclass(frozen=True)
class Kept:
    """Selected boxes of one image: [N, 4] float32 xyxy pixels inside it, [N] falling scores, [N] labels."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


def select(scored: ScoredBoxes, row: int, size: tuple[int, int], *, threshold: float) -> Kept:
    """Select the boxes of one image that reach the threshold, best first, clipped to its `size` (H, W).

    Raises:
        NonFiniteOutputError: a score or a box is NaN or infinite, which no comparison with a threshold would show.
    """
    check_finite(scored, row)
    scores = scored.scores[row]
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= threshold]
    height, width = size
    corner = np.array([width, height, width, height], dtype=np.float32)
    return Kept(scored.boxes[row][order].clip(0, corner), scores[order], scored.labels[row][order].astype(np.int64))
