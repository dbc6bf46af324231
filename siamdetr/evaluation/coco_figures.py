"""COCO's figures, as pycocotools or faster-coco-eval computes them. Nothing is printed."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from siamdetr.evaluation.results import Results

Backend = Literal["fast", "reference"]
COCO_DETECTIONS = 100  # of an image, that COCO's protocol counts


@dataclass(frozen=True)
class ClassMetrics:
    """One class's figures, 0..1; None where the data set has no object of it."""

    name: str
    num_boxes: int  # crowds left out
    ap: float | None
    ap50: float | None
    ap75: float | None
    ar100: float | None


@dataclass(frozen=True)
class DetectionMetrics:
    """COCO's figures in [0, 1]: AP over IoU .50:.95, AP by object size, and AR by number of detections.

    Areas of 32² and 96² pixels separate small, medium and large objects.

    A figure by size is None where the data set has no object of that size.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float
    ar10: float
    ar100: float  # of `max_detections`, COCO: 100
    per_class: tuple[ClassMetrics, ...]
    max_detections: int = COCO_DETECTIONS  # of an image, that were counted


def run_coco(
    truth: dict[str, Any], detections: Results, max_detections: int, backend: Backend
) -> dict[str, NDArray[np.float64]]:
    """Precision [T, R, K, A, M] and recall [T, K, A, M]; -1 where there is no object.

    Categories are in ascending order.
    """
    if backend == "fast":
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    with contextlib.redirect_stdout(io.StringIO()):
        expected = COCO()
        expected.dataset = truth
        expected.createIndex()
        found = COCO()
        found.dataset = {**truth, "annotations": _annotations(detections)}
        found.createIndex()
        evaluation = COCOeval(expected, found, iouType="bbox")
        evaluation.params.maxDets = [1, min(10, max_detections), max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return cast("dict[str, NDArray[np.float64]]", evaluation.eval)


def _annotations(detections: Results) -> list[dict[str, Any]]:
    """The detections in the form of COCO's evaluation, each written once.

    With 5,000 images of 100 detections each they take most of the memory.
    """
    entries = detections.as_dicts()
    for number, entry in enumerate(entries, start=1):
        entry["id"], entry["area"], entry["iscrowd"] = number, entry["bbox"][2] * entry["bbox"][3], 0
    return entries


def mean_figure(figures: NDArray[np.float64]) -> float | None:
    """Mean of the figures that exist; None when none does."""
    there = figures[figures > -1]
    return float(there.mean()) if there.size else None
