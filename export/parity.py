"""Whether an exported graph computes what PyTorch does: several batch sizes and image sizes, order of boxes left aside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from siamdetr.detector import SiamDETR
from siamdetr.evaluation.predictor import ScoredBoxes
from siamdetr.evaluation.pytorch import PyTorchPredictor
from siamdetr.export.runtime import OnnxDetector
from siamdetr.preprocessing import ImageLike, Pixels, Prepared, PreprocessingSpec, preprocess, resized_size

TOLERANCE = 1e-4  # of scores, and of boxes as fractions of the image
ROW_TOLERANCE = 1e-5  # between identical images of one batch


@dataclass(frozen=True)
class ParityCheck:
    """One comparison: a batch of images of one size. Errors are the greatest of the batch."""

    batch_size: int
    height: int
    width: int
    score_error: float
    box_error: float  # fraction of the image
    row_error: float  # between the first and the last image, which are the same; 0 in a batch of one


@dataclass(frozen=True)
class ParityReport:
    """All comparisons of an export."""

    checks: tuple[ParityCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every error is within tolerance."""
        return not self._failed()

    @property
    def largest_error(self) -> float:
        """The greatest error of scores and boxes."""
        return max(max(check.score_error, check.box_error) for check in self.checks)

    def failure(self) -> str:
        """What differs most, in words; only of a report that did not pass."""
        worst = max(self._failed(), key=lambda check: max(check.score_error, check.box_error))
        return (
            f"differs from PyTorch at batch {worst.batch_size} of {worst.height}×{worst.width} pixels: scores by "
            f"{worst.score_error:.2g}, boxes by {worst.box_error:.2g} of the image (allowed: {TOLERANCE:g}), identical images "
            f"by {worst.row_error:.2g} (allowed: {ROW_TOLERANCE:g})"
        )

    def _failed(self) -> list[ParityCheck]:
        return [
            check
            for check in self.checks
            if not (max(check.score_error, check.box_error) <= TOLERANCE and check.row_error <= ROW_TOLERANCE)
        ]


def check_parity(model: SiamDETR, onnx_file: str | Path, *, images: Sequence[ImageLike] = ()) -> ParityReport:
    """Compare an exported file with the model that it came from, on the CPU.

    Batches of 1, 2 and 5; the full size of the preprocessing, and two smaller ones that no stride divides. In batches the
    last image is the first one again, and must give the same boxes.

    Args:
        model: the PyTorch model.
        onnx_file: what `export_onnx` made.
        images: pictures to compare on; none: patterns drawn by a fixed seed.
    """
    exported = OnnxDetector(onnx_file)
    reference = PyTorchPredictor(model.detector, model.class_names, model.preprocessing)
    checks = []
    for batch_size, (height, width) in zip((1, 2, 5), check_sizes(model.preprocessing), strict=True):
        batch = _batch(images, batch_size, height, width)
        expected, found = reference.predict_batch(batch), exported.predict_batch(batch)
        errors = [compare(expected, found, row, tuple(batch.original_sizes[row])) for row in range(batch_size)]
        rows = max(compare(found, found, 0, tuple(batch.original_sizes[0]), other_row=batch_size - 1))
        score_error, box_error = (max(error[i] for error in errors) for i in range(2))
        checks.append(ParityCheck(batch_size, height, width, score_error, box_error, rows))
    return ParityReport(tuple(checks))


def check_sizes(spec: PreprocessingSpec) -> list[tuple[int, int]]:
    """(H, W) of the three comparisons: full; about half, odd; about a third, odd, and upright."""
    height, width = resized_size((480, 640), spec)
    half = max(65, height // 2 | 1), max(87, width // 2 | 1)
    third = max(87, width // 3 | 1), max(65, height // 3 | 1)
    return [(height, width), half, third]


def compare(
    expected: ScoredBoxes, found: ScoredBoxes, row: int, size: tuple[int, ...], *, other_row: int | None = None
) -> tuple[float, float]:
    """Greatest difference of scores and of boxes between two answers about one image, whatever their order.

    Every box is held against the box of the other answer that is most like it and of the same label. Boxes whose score is
    within tolerance of the lowest score may be missing in the other answer: which of them are among the best K is chance.

    Args:
        expected: of a batch.
        found: of a batch.
        row: the image in `expected`.
        size: (H, W) of the original image, pixels.
        other_row: the image in `found`; None: `row`.
    Returns:
        (score error, box error as a fraction of the image); infinite when they have nothing in common.
    """
    other_row = row if other_row is None else other_row
    scale = np.array([size[1], size[0], size[1], size[0]], dtype=np.float64)
    a = _Answer(expected.scores[row], expected.labels[row], expected.boxes[row] / scale)
    b = _Answer(found.scores[other_row], found.labels[other_row], found.boxes[other_row] / scale)
    sorted_error = float(np.abs(np.sort(a.scores) - np.sort(b.scores)).max(initial=0.0))
    errors = [_one_way(a, b), _one_way(b, a)]
    return max(sorted_error, *(error[0] for error in errors)), max(error[1] for error in errors)


@dataclass(frozen=True)
class _Answer:
    scores: NDArray[np.float32]  # [K]
    labels: NDArray[np.int64]  # [K]
    boxes: NDArray[np.float64]  # [K, 4] fractions


def _one_way(a: _Answer, b: _Answer) -> tuple[float, float]:
    sure = a.scores > a.scores.min(initial=1.0) + TOLERANCE
    score = np.abs(a.scores[sure][:, None].astype(np.float64) - b.scores[None])  # [k, K]
    box = np.abs(a.boxes[sure][:, None] - b.boxes[None]).max(-1)
    distance = np.where(a.labels[sure][:, None] == b.labels[None], np.maximum(score, box), np.inf)
    if distance.size == 0:
        return 0.0, 0.0
    nearest = distance.argmin(1)
    lonely = ~np.isfinite(distance.min(1))
    if lonely.any():
        return float("inf"), float("inf")
    rows = np.arange(len(nearest))
    return float(score[rows, nearest].max()), float(box[rows, nearest].max())


def _batch(images: Sequence[ImageLike], batch_size: int, height: int, width: int) -> Prepared:
    """Images of one size, the last the same as the first."""
    if not images:
        drawn = example_images(batch_size, height, width)
        drawn[-1] = drawn[0]
        sizes = np.array([[480, 640], [333, 500], [1024, 768], [97, 61], [480, 640]], dtype=np.int64)[:batch_size]
        sizes[-1] = sizes[0]
        return Prepared(drawn, None, sizes, np.tile([height, width], (batch_size, 1)))
    chosen = [images[i % len(images)] for i in range(batch_size - 1)]
    return preprocess([*chosen, images[0]], PreprocessingSpec(mode="fixed", size=(height, width)))


def example_images(number: int, height: int, width: int) -> Pixels:
    """[number, 3, height, width] uint8: coloured waves under noise, each image another, always the same."""
    generator = np.random.default_rng(number)
    y, x = np.mgrid[0:height, 0:width] / 40.0
    images = np.empty((number, 3, height, width), dtype=np.uint8)
    for image in images:
        for channel in image:
            a, b, c, d = generator.uniform(-2, 2, 4)
            wave = np.sin(a * x + b * y + c) * np.cos(d * y)
            channel[...] = (127 + 90 * wave + generator.normal(0, 12, wave.shape)).clip(0, 255)
    return images
