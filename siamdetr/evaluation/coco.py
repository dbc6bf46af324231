"""Detect on every image of a data set, and score the detections by COCO's protocol (`scorer`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from siamdetr.data.index import DetectionIndex, object_counts
from siamdetr.evaluation.classes import as_one_class, is_class_agnostic, match_classes
from siamdetr.evaluation.coco_figures import (
    COCO_DETECTIONS,
    DetectionMetrics,
)
from siamdetr.evaluation.results import read_results, write_results
from siamdetr.evaluation.scorer import CocoScorer
from siamdetr.evaluation.skipping import predict_or_skip
from siamdetr.images.preprocessing import PreprocessingSpec, group_by_size
from siamdetr.inference.image_reader import read_samples
from siamdetr.inference.predictor import Predictor, Progress

if TYPE_CHECKING:
    from siamdetr.models.detector import Detector

logger = logging.getLogger(__name__)


def evaluate(
    model: Predictor | Detector,
    index: DetectionIndex,
    *,
    preprocessing: PreprocessingSpec | None = None,
    batch_size: int = 8,
    workers: int = 2,
    progress: Progress | None = None,
    max_detections: int = COCO_DETECTIONS,
    results_file: str | Path | None = None,
) -> DetectionMetrics:
    """Predict on every image of a data set and score it; arguments and errors as of `detect`.

    `results_file`: also write the detections there, in COCO's results format.
    """
    warn_of_crowded_images(index, max_detections)
    scorer = detect(
        model,
        index,
        preprocessing=preprocessing,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
        max_detections=max_detections,
    )
    if results_file is not None:
        write_results(results_file, scorer.results(), index)
    return scorer.summarize()


def warn_of_crowded_images(index: DetectionIndex, max_detections: int) -> None:
    """Warn of images with more objects than detections are counted."""
    objects = object_counts(index)
    crowded = int((objects > max_detections).sum())
    if crowded:
        logger.warning(
            "%d images of %s have more than %d objects (the most: %d), and only the %d best detections of an image count: even a perfect "
            "detector stays below AP 1. To count more: --max-detections (finetune: --set val_max_detections=%d)",
            crowded,
            index.root,
            max_detections,
            int(objects.max()),
            max_detections,
            int(objects.max()),
        )


def detect(
    model: Predictor | Detector,
    index: DetectionIndex,
    *,
    preprocessing: PreprocessingSpec | None = None,
    batch_size: int = 8,
    workers: int = 2,
    progress: Progress | None = None,
    max_detections: int = COCO_DETECTIONS,
    positions: Sequence[int] | None = None,
) -> CocoScorer:
    """Predict on every image of a data set and collect the detections for scoring.

    Images are batched with others of their size only.

    An image that cannot be read, or that the model fails on, is named in a warning and counts as one without
    detections; the scorer lists such images as `skipped`.

    Args:
        model: a `SiamDETR`, an exported model, or a bare detector whose classes are those of `index`. It runs on its
            own device. A class-agnostic model (pretrained only) is scored with all boxes as one class.
        index: images and truth.
        preprocessing: needed with a bare detector; else the model's own.
        batch_size: images at a time.
        workers: threads that read images; 0: none.
        progress: called with (images done, images in all).
        max_detections: how many of an image's best detections count; COCO's protocol: 100.
        positions: the images to predict on; None: all. The scorer knows the truth of all.
    Raises:
        DataError: the data set has no labels, or classes that the model does not know; or the model fails on more than
            1 % of the images.
        ValueError: a bare detector without preprocessing, or whose number of classes is not the data set's.
    """
    predictor = _as_predictor(model, index, preprocessing)
    if is_class_agnostic(predictor):
        index = as_one_class(index)
    labels = match_classes(predictor.class_names, index.class_names, str(index.root))
    scorer = CocoScorer(index, max_detections)
    spec = predictor.preprocessing
    part = index if positions is None else index.subset(positions)
    seen = np.zeros(len(part), dtype=np.bool_)
    batches = group_by_size(read_samples(part, spec, workers), spec, batch_size)
    for rows, scored in predict_or_skip(predictor, batches, part):
        scorer.add([int(part.image_ids[i]) for i in rows], scored, labels=labels)
        seen[rows] = True
        if progress is not None:
            progress(int(seen.sum()), len(part))
    scorer.skipped = tuple(part.relative_path(int(i)) for i in np.flatnonzero(~seen))
    if progress is not None and scorer.skipped:
        progress(len(part), len(part))
    return scorer


def score_results(
    path: str | Path, index: DetectionIndex, *, max_detections: int = COCO_DETECTIONS
) -> DetectionMetrics:
    """The figures of a COCO results file of any program.

    Raises:
        DataError: the file cannot be used, or the data set has no labels.
    """
    warn_of_crowded_images(index, max_detections)
    return read_scorer(path, index, max_detections=max_detections).summarize()


def read_scorer(path: str | Path, index: DetectionIndex, *, max_detections: int = COCO_DETECTIONS) -> CocoScorer:
    """A scorer of the detections in a COCO results file; errors as of `score_results`."""
    scorer = CocoScorer(index, max_detections)
    scorer.add_results(read_results(path, index))
    return scorer


def _as_predictor(
    model: Predictor | Detector, index: DetectionIndex, preprocessing: PreprocessingSpec | None
) -> Predictor:
    if hasattr(model, "predict_batch"):  # asked like this, so that an exported file is scored without PyTorch
        return cast("Predictor", model)
    from siamdetr.inference.pytorch import PyTorchPredictor

    detector = cast("Detector", model)
    if preprocessing is None:
        raise ValueError(
            "evaluate: a bare detector does not know its preprocessing; give `preprocessing`, or a SiamDETR"
        )
    if detector.settings.num_classes != index.num_classes:
        raise ValueError(
            f"evaluate: the detector has {detector.settings.num_classes} classes, the data set {index.root} has "
            f"{index.num_classes}: {list(index.class_names)}; give a SiamDETR, whose class names can be matched"
        )
    return PyTorchPredictor(detector, index.class_names, preprocessing)
