"""Detections matched with the truth at one IoU, for precision, recall, thresholds and mistakes.

The rule is COCO's: class by class, best score first, each detection takes the free true box that it overlaps most, if
by at least the IoU asked for. A detection that only overlaps a crowd region is neither right nor wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from siamdetr.data.index import DetectionIndex
from siamdetr.evaluation.results import Results

FREE, IGNORED = -1, -2  # instead of the row of a true box
MATCH_IOU = 0.5


@dataclass(frozen=True)
class Matched:
    """M detections of a data set, best score first, and what each was matched with.

    Attributes:
        index: the truth, K boxes.
        images: [M] positions in the index.
        labels: [M] the data set's labels.
        boxes: [M, 4] (x0, y0, x1, y1) pixels.
        scores: [M] falling.
        truths: [M] row of the true box; FREE: none, a false positive; IGNORED: a crowd region.
        iou: the least IoU of a match.
    """

    index: DetectionIndex
    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    truths: NDArray[np.int64]
    iou: float

    def above(self, threshold: float) -> Matched:
        """The detections whose score is at least `threshold`.

        Matches stay as they are, since the best come first.
        """
        kept = slice(int(np.searchsorted(-self.scores, -threshold, side="right")))
        return Matched(
            self.index,
            self.images[kept],
            self.labels[kept],
            self.boxes[kept],
            self.scores[kept],
            self.truths[kept],
            self.iou,
        )

    def counted(self, label: int | None = None) -> tuple[NDArray[np.float64], NDArray[np.bool_], int]:
        """Scores falling, which detections are right, and how many objects there are.

        Of one class or of all together.
        """
        chosen = self.truths != IGNORED
        objects = ~self.index.crowd
        if label is not None:
            chosen &= self.labels == label
            objects &= self.index.labels == label
        return self.scores[chosen], self.truths[chosen] >= 0, int(objects.sum())


def match_results(results: Results, index: DetectionIndex, *, iou: float = MATCH_IOU) -> Matched:
    """Match all detections of a data set.

    Args:
        results: detections with the data set's own ids.
        index: the truth.
        iou: least overlap of a match, in (0, 1].
    """
    order = np.argsort(-results.scores, kind="stable")
    images = _positions(results.image_ids[order], index.image_ids)
    labels = _positions(results.category_ids[order], np.asarray(index.category_ids))
    boxes = results.boxes[order]
    truths = np.full(len(order), FREE, dtype=np.int64)
    for image in np.unique(images):
        rows = np.flatnonzero(images == image)
        truths[rows] = _match_image(boxes[rows], labels[rows], index, int(image), iou)
    return Matched(index, images, labels, boxes, results.scores[order], truths, iou)


def overlaps(
    boxes: NDArray[np.float64], true_boxes: NDArray[np.float64], crowd: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """[n, m] IoU of (x0, y0, x1, y1) boxes as pycocotools computes it.

    With a crowd region, the share of the detection inside.
    """
    if not len(boxes) or not len(true_boxes):
        return np.zeros((len(boxes), len(true_boxes)))
    sides = [np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1).astype(np.float64) for b in (boxes, true_boxes)]
    found: NDArray[np.float64] = mask.iou(*sides, crowd.astype(np.uint8))
    return found


def _match_image(
    boxes: NDArray[np.float64], labels: NDArray[np.int64], index: DetectionIndex, image: int, iou: float
) -> NDArray[np.int64]:
    """[n] of one image's detections, best first: the row of the true box, FREE or IGNORED."""
    rows = index.box_slice(image)
    crowd, true_labels = index.crowd[rows], index.labels[rows]
    found = overlaps(boxes, index.boxes[rows].astype(np.float64), crowd)
    found[labels[:, None] != true_labels] = 0.0
    chosen = np.full(len(boxes), FREE, dtype=np.int64)
    objects = np.where(crowd, 0.0, found)
    for n in range(len(boxes)):
        best = int(objects[n].argmax()) if objects.shape[1] else 0
        if objects.shape[1] and objects[n, best] >= iou:
            chosen[n] = rows.start + best
            objects[:, best] = 0.0
        elif (found[n] * crowd >= iou).any():
            chosen[n] = IGNORED
    return chosen


def _positions(values: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.int64]:
    """The position of each value in `known`."""
    order = np.argsort(known)
    positions: NDArray[np.int64] = order[np.searchsorted(known, values, sorter=order)]
    return positions
