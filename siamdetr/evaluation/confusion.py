"""The confusion matrix of a detector at one threshold.

Confused classes, missed objects and false detections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import supervision as sv
from numpy.typing import NDArray

from siamdetr.evaluation.matched import Matched

BACKGROUND = "background"


@dataclass(frozen=True)
class Confusion:
    """Counts of pairs of true and predicted class.

    Attributes:
        class_names: C names.
        counts: [C + 1, C + 1] rows true, columns predicted; the last row is background that was taken for an object,
            the last column objects that nothing found.
    """

    class_names: tuple[str, ...]
    counts: NDArray[np.int64]


def confusion_of(matched: Matched, threshold: float) -> Confusion:
    """Count with supervision: boxes are paired by IoU whatever their class. Crowd regions are left out."""
    index = matched.index
    kept = matched.above(threshold)
    by_image = [np.flatnonzero(kept.images == image) for image in range(len(index))]
    predictions = [
        sv.Detections(
            kept.boxes[rows].astype(np.float32), confidence=kept.scores[rows], class_id=kept.labels[rows].astype(int)
        )
        for rows in by_image
    ]
    truths = []
    for image in range(len(index)):
        objects = ~index.crowd[index.box_slice(image)]
        truths.append(
            sv.Detections(index.boxes_of(image)[objects], class_id=index.labels_of(image)[objects].astype(int))
        )
    matrix = sv.ConfusionMatrix.from_detections(
        predictions, truths, classes=list(index.class_names), conf_threshold=0.0, iou_threshold=matched.iou
    )
    return Confusion(index.class_names, np.asarray(matrix.matrix, dtype=np.int64))
