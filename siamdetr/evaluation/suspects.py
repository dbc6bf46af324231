"""Likely label errors: labels that contradict detections of high score.

Three kinds, after Tkachenko et al. 2023 ("ObjectLab", arXiv:2309.00832): overlooked objects, swapped classes and badly
placed boxes. Ours: they are read off matched detections at a threshold, and ranked by the detection's score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from siamdetr.evaluation.matched import FREE, IGNORED, Matched, overlaps
from siamdetr.evaluation.mistakes import Corners, corners_of
from siamdetr.evaluation.thresholds import best_f1, threshold_curves

SuspectKind = Literal["missing box", "wrong class", "loose box"]
SUSPECT_KINDS: tuple[SuspectKind, ...] = ("missing box", "wrong class", "loose box")
TIGHT = 0.7  # IoU of a box that is never called loose
LEAST_OVERLAP = 0.1  # below it a detection has nothing to do with a box
_LOOSEST = 10  # percent of the model's matches, by IoU: a coarse model does not call every box loose


@dataclass(frozen=True)
class Suspect:
    """A label that is likely wrong.

    Attributes:
        kind: missing box: a detection where nothing is labelled; wrong class: a box whose object the model calls
            otherwise; loose box: a box that is placed otherwise than the model places it.
        image: position in the index.
        box: of the detection, pixels.
        label: of the detection.
        score: of the detection.
        truth: row of the labelled box; None: a missing one.
        overlap: IoU of the two; 0 for a missing box.
        rank: how likely it is an error, 0..1.
    """

    kind: SuspectKind
    image: int
    box: Corners
    label: int
    score: float
    truth: int | None
    overlap: float
    rank: float


def find_suspects(matched: Matched, threshold: float) -> list[Suspect]:
    """Likely label errors, most likely first; no detection and no labelled box is named twice.

    Args:
        matched: detections of a model that was trained on other images, matched at an IoU of .5.
        threshold: score from which a detection is believed.
    """
    kept = matched.above(threshold)
    limit = _loose_below(kept)
    found: list[Suspect] = []
    for image in np.unique(kept.images):
        found += _of_image(kept, int(image), np.flatnonzero(kept.images == image), limit)
    return sorted(found, key=lambda suspect: -suspect.rank)


def believed_from(matched: Matched) -> float:
    """The threshold of the best F1 on the labels, for a model whose file stores no threshold."""
    best = best_f1(threshold_curves(matched)[0])
    return 1.0 if best is None else best.threshold


def _of_image(matched: Matched, image: int, rows: NDArray[np.int64], limit: float) -> list[Suspect]:
    index = matched.index
    of_image = index.box_slice(image)
    boxes, crowd = index.boxes[of_image].astype(np.float64), index.crowd[of_image]
    ious = overlaps(matched.boxes[rows], boxes, crowd)
    named = {int(truth) - of_image.start for truth in matched.truths[rows] if truth >= 0}
    found = []
    for row, overlap in zip(rows, ious, strict=True):
        own = matched.truths[row]
        if own == IGNORED or (crowd & (overlap >= LEAST_OVERLAP)).any():
            continue
        if own != FREE:
            truth = int(own) - of_image.start
            if overlap[truth] < limit:
                found.append(_suspect("loose box", matched, row, image, of_image.start + truth, float(overlap[truth])))
            continue
        best = int(overlap.argmax()) if len(overlap) else -1
        if best < 0 or overlap[best] < LEAST_OVERLAP:
            found.append(_suspect("missing box", matched, row, image, None, 0.0))
        elif best not in named:  # else it is a second detection of an object that is labelled as the model says
            named.add(best)
            same = index.labels[of_image.start + best] == matched.labels[row]
            if same or overlap[best] >= matched.iou:
                kind: SuspectKind = "loose box" if same else "wrong class"
                found.append(_suspect(kind, matched, row, image, of_image.start + best, float(overlap[best])))
    return _once(found)


def _suspect(
    kind: SuspectKind, matched: Matched, row: np.int64, image: int, truth: int | None, overlap: float
) -> Suspect:
    score = float(matched.scores[row])
    rank = score * (1 - overlap) if kind == "loose box" else score
    return Suspect(kind, image, corners_of(matched.boxes[row]), int(matched.labels[row]), score, truth, overlap, rank)


def _once(found: list[Suspect]) -> list[Suspect]:
    """Keep the best of missing boxes that overlap each other, such as one object under two classes."""
    kept: list[Suspect] = []
    for suspect in found:  # best score first
        others = [np.array(other.box) for other in kept if other.kind == "missing box"]
        if suspect.kind == "missing box" and others:
            shared = overlaps(np.array([suspect.box]), np.stack(others), np.zeros(len(others), dtype=bool))
            if shared.max() >= LEAST_OVERLAP:
                continue
        kept.append(suspect)
    return kept


def _loose_below(matched: Matched) -> float:
    """The IoU below which a labelled box is loose: the worst tenth of the matches, at most `TIGHT`."""
    right = np.flatnonzero(matched.truths >= 0)
    if not len(right):
        return TIGHT
    found, true = matched.boxes[right], matched.index.boxes[matched.truths[right]].astype(np.float64)
    corner, end = np.maximum(found[:, :2], true[:, :2]), np.minimum(found[:, 2:], true[:, 2:])
    inner = (end - corner).clip(0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (found, true)]
    return min(TIGHT, float(np.percentile(inner / (areas[0] + areas[1] - inner), _LOOSEST)))
