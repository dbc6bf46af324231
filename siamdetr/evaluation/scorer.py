"""COCO's average precision and recall of detections.

The figures are those of pycocotools, computed by faster-coco-eval (a test holds the two equal). As there: crowd regions
are neither objects to find nor mistakes to make; only the 100 best detections of an image count. Boxes that PASCAL VOC
marks "difficult" count like any other, since COCO's protocol has no such thing. Nothing is printed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siamdetr.data.index import DetectionIndex, require_labels
from siamdetr.errors import DataError
from siamdetr.evaluation.coco_figures import (
    COCO_DETECTIONS,
    Backend,
    ClassMetrics,
    DetectionMetrics,
    mean_figure,
    run_coco,
)
from siamdetr.evaluation.results import Results, concatenate_results
from siamdetr.inference.predictor import ScoredBoxes, check_finite


class CocoScorer:
    """Collects scored boxes of a data set's images and computes COCO's figures.

    Images for which nothing was added count as images without detections.

    Args:
        index: the truth; it must have boxes.
        max_detections: how many of an image's best detections count; COCO's protocol: 100.
    Raises:
        DataError: the index has no boxes, or two images share an id.

    Attributes:
        skipped: names of the images without detections because they could not be read or the model failed.
    """

    def __init__(self, index: DetectionIndex, max_detections: int = COCO_DETECTIONS) -> None:
        self.max_detections = max_detections
        self.skipped: tuple[str, ...] = ()
        self.index = require_labels(index)
        if len(np.unique(index.image_ids)) < len(index):
            raise DataError(f"{index.root}: image ids are not unique; `siamdetr doctor` lists them")
        self._known = frozenset(index.image_ids.tolist())
        self._categories = np.array(index.category_ids, dtype=np.int64)
        self._parts: list[Results] = []

    def add(self, image_ids: Sequence[int], scored: ScoredBoxes, *, labels: NDArray[np.int64] | None = None) -> None:
        """Add the scored boxes of images.

        Args:
            image_ids: B ids of the data set.
            scored: their boxes.
            labels: [C] the data set's label of each of the model's labels, -1 = it has none; None: they are the same.
        Raises:
            ValueError: an image is not in the data set, or there are not as many ids as images.
        """
        if len(image_ids) != len(scored.scores):
            raise ValueError(f"CocoScorer: got {len(image_ids)} image ids for {len(scored.scores)} images of boxes")
        for row, image_id in enumerate(image_ids):
            if image_id not in self._known:
                raise ValueError(f"CocoScorer: image id {image_id} is not among the {len(self.index)} of the data set")
            check_finite(scored, row)
            mapped = scored.labels[row] if labels is None else labels[scored.labels[row]]
            kept = np.flatnonzero(mapped >= 0)
            if len(kept) > self.max_detections:
                best = np.argsort(-scored.scores[row][kept], kind="stable")[: self.max_detections]
                kept = kept[np.sort(best)]
            self._parts.append(
                Results(
                    image_ids=np.full(len(kept), image_id, dtype=np.int64),
                    category_ids=self._categories[mapped[kept]],
                    boxes=scored.boxes[row][kept].astype(np.float64),
                    scores=scored.scores[row][kept].astype(np.float64),
                )
            )

    def add_results(self, results: Results) -> None:
        """Add detections that bear the data set's ids, such as those of a results file."""
        self._parts.append(results)

    def results(self) -> Results:
        """All added detections."""
        self._parts = [concatenate_results(self._parts)]  # the images' own arrays go
        return self._parts[0]

    def summarize(self, *, backend: Backend = "fast") -> DetectionMetrics:
        """The figures of all that was added; "reference" takes pycocotools."""
        evaluated = run_coco(self._truth(), self._found(), self.max_detections, backend)
        precision, recall = evaluated["precision"], evaluated["recall"]  # [T, R, K, A, M], [T, K, A, M]
        counts = np.bincount(self.index.labels[~self.index.crowd], minlength=self.index.num_classes)
        return DetectionMetrics(
            ap=mean_figure(precision[:, :, :, 0, 2]) or 0.0,
            ap50=mean_figure(precision[0, :, :, 0, 2]) or 0.0,
            ap75=mean_figure(precision[5, :, :, 0, 2]) or 0.0,
            ap_small=mean_figure(precision[:, :, :, 1, 2]),
            ap_medium=mean_figure(precision[:, :, :, 2, 2]),
            ap_large=mean_figure(precision[:, :, :, 3, 2]),
            ar1=mean_figure(recall[:, :, 0, 0]) or 0.0,
            ar10=mean_figure(recall[:, :, 0, 1]) or 0.0,
            ar100=mean_figure(recall[:, :, 0, 2]) or 0.0,
            per_class=tuple(
                ClassMetrics(
                    name=name,
                    num_boxes=int(counts[label]),
                    ap=mean_figure(precision[:, :, label, 0, 2]),
                    ap50=mean_figure(precision[0, :, label, 0, 2]),
                    ap75=mean_figure(precision[5, :, label, 0, 2]),
                    ar100=mean_figure(recall[:, label, 0, 2]),
                )
                for label, name in enumerate(self.index.class_names)
            ),
            max_detections=self.max_detections,
        )

    def _truth(self) -> dict[str, Any]:
        """The data set as COCO's annotation dictionary; images are numbered from 1, categories are labels + 1.

        So the evaluation's arithmetic is safe with any ids.
        """
        index = self.index
        corners = index.boxes.astype(np.float64)
        sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
        rows = zip(
            np.repeat(np.arange(1, len(index) + 1), index.box_counts()).tolist(),
            (index.labels + 1).tolist(),
            sides,
            index.areas.astype(np.float64).tolist(),
            index.crowd.astype(int).tolist(),
            strict=True,
        )
        return {
            "images": [{"id": number} for number in range(1, len(index) + 1)],
            "categories": [{"id": label + 1} for label in range(index.num_classes)],
            "annotations": [
                {"id": n, "image_id": i, "category_id": c, "bbox": bbox, "area": area, "iscrowd": crowd}
                for n, (i, c, bbox, area, crowd) in enumerate(rows, start=1)  # id 0 would mean "unmatched"
            ],
        }

    def _found(self) -> Results:
        """All added detections, with the ids of `_truth`."""
        results = self.results()
        images = _ranks(results.image_ids, self.index.image_ids, "image id")
        labels = _ranks(results.category_ids, self._categories, "category id")
        return dataclasses.replace(results, image_ids=images + 1, category_ids=labels + 1)


def _ranks(values: NDArray[np.int64], known: NDArray[np.int64], what: str) -> NDArray[np.int64]:
    """The position in `known` of each value.

    Raises:
        ValueError: a value is not there.
    """
    order = np.argsort(known, kind="stable")
    places = np.searchsorted(known, values, sorter=order).clip(max=len(known) - 1)
    ranks: NDArray[np.int64] = order[places]
    strange = values[known[ranks] != values]
    if len(strange):
        raise ValueError(f"CocoScorer: {what} {strange[0]} is not among the {len(known)} of the data set")
    return ranks
