"""The difference between two sets of detections of the same images, in any order of boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siamdetr.inference.predictor import ScoredBoxes


@dataclass(frozen=True)
class Difference:
    """The difference between two sets of detections of one image.

    Attributes:
        score: greatest difference of the scores; infinite where a box has no counterpart of its label, or a value is
            not finite.
        box: greatest difference of the boxes, as a fraction of the image.
        matched: share of the boxes that have a counterpart within the tolerances.
        compared: share of the boxes that could be judged, see `difference`.
    """

    score: float
    box: float
    matched: float
    compared: float


NO_DIFFERENCE = Difference(score=0.0, box=0.0, matched=1.0, compared=1.0)


def worst(differences: list[Difference]) -> Difference:
    """The largest of several differences in every respect."""
    return Difference(
        score=max(one.score for one in differences),
        box=max(one.box for one in differences),
        matched=min(one.matched for one in differences),
        compared=min(one.compared for one in differences),
    )


def difference(
    expected: ScoredBoxes,
    found: ScoredBoxes,
    row: int,
    size: tuple[int, int],
    *,
    scores: float,
    boxes: float,
    other_row: int | None = None,
    least: float = 0.0,
) -> Difference:
    """Compare two sets of detections of one image.

    Every box is compared with the most similar box of the same label on the other side, both ways. A box without a
    counterpart is not judged if its score is so near the other side's lowest that it may be missing from the best K by
    chance: `compared` is the share of judged boxes.

    Args:
        expected: of a batch.
        found: of a batch.
        row: the image in `expected`.
        size: (H, W) of the original image, pixels.
        scores: tolerance of a score.
        boxes: tolerance of a box, as a fraction of the image.
        other_row: the image in `found`; None: `row`.
        least: boxes of lower scores are not judged, but may be counterparts of others.
    """
    other_row = row if other_row is None else other_row
    scale = np.array([size[1], size[0], size[1], size[0]], dtype=np.float64)
    a = _Answer(expected.scores[row], expected.labels[row], expected.boxes[row] / scale)
    b = _Answer(found.scores[other_row], found.labels[other_row], found.boxes[other_row] / scale)
    return worst([_one_way(a, b, scores, boxes, least), _one_way(b, a, scores, boxes, least)])


@dataclass(frozen=True)
class _Answer:
    scores: NDArray[np.float32]  # [K]
    labels: NDArray[np.int64]  # [K]
    boxes: NDArray[np.float64]  # [K, 4] fractions


def _one_way(a: _Answer, b: _Answer, scores: float, boxes: float, least: float) -> Difference:
    kept = a.scores >= least
    if least and not kept.any():
        return NO_DIFFERENCE
    a = _Answer(a.scores[kept], a.labels[kept], a.boxes[kept]) if least else a
    if len(a.scores) == 0 or len(b.scores) == 0:
        return NO_DIFFERENCE if len(a.scores) == len(b.scores) else Difference(np.inf, np.inf, 0.0, 0.0)
    score = np.abs(a.scores[:, None].astype(np.float64) - b.scores[None])  # [K, K]
    box = np.abs(a.boxes[:, None] - b.boxes[None]).max(-1)
    distance = np.maximum(score / scores, box / boxes)
    distance = np.where(a.labels[:, None] == b.labels[None], np.nan_to_num(distance, nan=np.inf), np.inf)
    nearest, apart = distance.argmin(1), distance.min(1)
    lonely = apart > 1
    lowest = least or float(b.scores.min())
    judged = ~(lonely & (a.scores <= lowest + 2 * scores))
    if not judged.any():
        return Difference(np.inf, np.inf, 0.0, 0.0)
    rows = np.flatnonzero(judged)
    alone = ~np.isfinite(apart[rows])
    return Difference(
        score=float(np.where(alone, np.inf, score[rows, nearest[rows]]).max()),
        box=float(np.where(alone, np.inf, box[rows, nearest[rows]]).max()),
        matched=float(1 - lonely[rows].mean()),
        compared=float(judged.mean()),
    )
