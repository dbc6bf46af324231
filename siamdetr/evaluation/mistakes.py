"""Kinds of mistakes at one threshold, and the worst of each kind.

Source: TIDE (Bolya et al. 2020, arXiv:2008.08115, §2).

Ours: TIDE's "both" (wrong class and poor box) counts as a poor box, so that five kinds remain.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from siamdetr.evaluation.matched import FREE, Matched, overlaps

Corners = tuple[float, float, float, float]
Kind = Literal["missed", "wrong class", "poor box", "duplicate", "background"]
KINDS: tuple[Kind, ...] = ("missed", "wrong class", "poor box", "duplicate", "background")
_LEAST_OVERLAP = 0.1  # below it a detection has to do with no object (TIDE, §2.2)


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Attributes:
        kind: missed: a true box without a detection; wrong class: a good box of another class; poor box: it overlaps an
            object by less than the IoU of a match; duplicate: of an object that has a better detection; background: it
            overlaps no object.
        image: position in the index.
        score: of the detection; for a missed object its share of the image's area.
        box: [4] (x0, y0, x1, y1) pixels of the detection; for a missed object the true box.
        label: of that box.
        truth: row of the true box concerned; None: there is none.
        overlap: IoU with it.
    """

    kind: Kind
    image: int
    score: float
    box: Corners
    label: int
    truth: int | None
    overlap: float


def find_mistakes(matched: Matched) -> list[Mistake]:
    """All mistakes among the detections given (`Matched.above` cuts them at a threshold), image by image."""
    mistakes: list[Mistake] = []
    for image in range(len(matched.index)):
        mistakes += _of_image(matched, image, np.flatnonzero(matched.images == image))
    return mistakes


def count_mistakes(mistakes: list[Mistake]) -> dict[Kind, int]:
    """Number of mistakes of each kind, including zeros."""
    counts = Counter(mistake.kind for mistake in mistakes)
    return {kind: counts[kind] for kind in KINDS}


def worst_mistakes(mistakes: list[Mistake], count: int = 24) -> list[Mistake]:
    """The worst mistakes in equal shares of each kind; other kinds fill up where one has too few.

    The worst are false detections with the highest scores, and the largest missed objects.
    """
    ranked = sorted(mistakes, key=lambda mistake: -mistake.score)
    rank: Counter[Kind] = Counter()
    turns: list[tuple[int, int, Mistake]] = []
    for mistake in ranked:
        turns.append((rank[mistake.kind], KINDS.index(mistake.kind), mistake))
        rank[mistake.kind] += 1
    chosen = sorted(turns, key=lambda turn: turn[:2])[:count]
    return [mistake for _, _, mistake in sorted(chosen, key=lambda turn: (turn[1], turn[0]))]


def _of_image(matched: Matched, image: int, rows: NDArray[np.int64]) -> list[Mistake]:
    index = matched.index
    of_image = index.box_slice(image)
    true_boxes, crowd = index.boxes[of_image].astype(np.float64), index.crowd[of_image]
    false = rows[matched.truths[rows] == FREE]
    found = overlaps(matched.boxes[false], true_boxes, crowd)
    found[:, crowd] = 0.0
    taken = np.isin(np.arange(of_image.start, of_image.stop), matched.truths[rows])
    mistakes, explained = [], taken | crowd
    for row, ious in zip(false, found, strict=True):
        kind, truth = _kind(ious, index.labels[of_image] == matched.labels[row], matched.iou)
        if truth is not None and kind != "duplicate":
            explained[truth] = True
        mistakes.append(
            Mistake(
                kind,
                image,
                float(matched.scores[row]),
                corners_of(matched.boxes[row]),
                int(matched.labels[row]),
                None if truth is None else of_image.start + truth,
                0.0 if truth is None else float(ious[truth]),
            )
        )
    height, width = index.sizes[image]
    for missed in np.flatnonzero(~explained):
        x0, y0, x1, y1 = box = corners_of(true_boxes[missed])
        share = (x1 - x0) * (y1 - y0) / max(1, int(height) * int(width))
        true_row = of_image.start + int(missed)
        mistakes.append(Mistake("missed", image, share, box, int(index.labels[true_row]), true_row, 1.0))
    return mistakes


def _kind(ious: NDArray[np.float64], same_class: NDArray[np.bool_], iou: float) -> tuple[Kind, int | None]:
    """The kind of a false detection, and the true box of its image that it concerns."""
    if not len(ious) or ious.max() < _LEAST_OVERLAP:
        return "background", None
    same = np.where(same_class, ious, 0.0)
    if same.max() >= iou:
        return "duplicate", int(same.argmax())
    best = int(ious.argmax())
    return ("wrong class" if ious[best] >= iou else "poor box"), best


def corners_of(box: NDArray[np.floating]) -> Corners:
    """A box [4] as Python floats."""
    x0, y0, x1, y1 = (float(value) for value in box)
    return x0, y0, x1, y1
