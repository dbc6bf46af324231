"""COCO's average precision and recall of a detector on a data set.

The figures are those of pycocotools, computed by faster-coco-eval (a test holds the two equal). As there: crowd regions are
neither objects to find nor mistakes to make; only the 100 best boxes of an image count. Boxes that PASCAL VOC marks
"difficult" count like any other, since COCO's protocol has no such thing. Nothing is printed.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from siamdetr.data.index import DetectionIndex, require_labels
from siamdetr.errors import DataError
from siamdetr.evaluation.classes import as_one_class, is_class_agnostic, match_classes
from siamdetr.evaluation.results import Results, concatenate_results, read_results, write_results
from siamdetr.images.preprocessing import PreprocessingSpec, group_by_size
from siamdetr.inference.image_reader import read_samples
from siamdetr.inference.predictor import Predictor, Progress, ScoredBoxes, check_finite

if TYPE_CHECKING:
    from siamdetr.models.detector import Detector

Backend = Literal["fast", "reference"]
_MAX_DETECTIONS = (1, 10, 100)


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
    """COCO's figures, 0..1: AP over IoU .50:.95, by size of object (32² and 96² pixels divide), AR by number of boxes.

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
    ar100: float
    per_class: tuple[ClassMetrics, ...]


class CocoScorer:
    """Collects scored boxes of a data set's images and computes COCO's figures.

    Images that nothing was added for count as images without detections.

    Args:
        index: the truth; it must have boxes.
    Raises:
        DataError: it has none, or two of its images share an id.
    """

    def __init__(self, index: DetectionIndex) -> None:
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
        categories = sorted(self._categories.tolist())
        evaluated = _run(self._truth(categories), self.results(), backend)
        precision, recall = evaluated["precision"], evaluated["recall"]  # [T, R, K, A, M], [T, K, A, M]
        row_of = {category: k for k, category in enumerate(categories)}
        counts = np.bincount(self.index.labels[~self.index.crowd], minlength=self.index.num_classes)
        return DetectionMetrics(
            ap=_mean(precision[:, :, :, 0, 2]) or 0.0,
            ap50=_mean(precision[0, :, :, 0, 2]) or 0.0,
            ap75=_mean(precision[5, :, :, 0, 2]) or 0.0,
            ap_small=_mean(precision[:, :, :, 1, 2]),
            ap_medium=_mean(precision[:, :, :, 2, 2]),
            ap_large=_mean(precision[:, :, :, 3, 2]),
            ar1=_mean(recall[:, :, 0, 0]) or 0.0,
            ar10=_mean(recall[:, :, 0, 1]) or 0.0,
            ar100=_mean(recall[:, :, 0, 2]) or 0.0,
            per_class=tuple(
                ClassMetrics(
                    name=name,
                    num_boxes=int(counts[label]),
                    ap=_mean(precision[:, :, k, 0, 2]),
                    ap50=_mean(precision[0, :, k, 0, 2]),
                    ap75=_mean(precision[5, :, k, 0, 2]),
                    ar100=_mean(recall[:, k, 0, 2]),
                )
                for label, name in enumerate(self.index.class_names)
                for k in [row_of[self.index.category_ids[label]]]
            ),
        )

    def _truth(self, categories: list[int]) -> dict[str, Any]:
        """The data set as COCO's annotation dictionary."""
        index = self.index
        image_of_box = np.repeat(index.image_ids, index.box_counts()).tolist()
        corners = index.boxes.astype(np.float64)
        sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
        rows = zip(
            image_of_box,
            self._categories[index.labels].tolist(),
            sides,
            index.areas.astype(np.float64).tolist(),
            index.crowd.astype(int).tolist(),
            strict=True,
        )
        return {
            "images": [{"id": image_id} for image_id in index.image_ids.tolist()],
            "categories": [{"id": category} for category in categories],
            "annotations": [
                {"id": n, "image_id": i, "category_id": c, "bbox": bbox, "area": area, "iscrowd": crowd}
                for n, (i, c, bbox, area, crowd) in enumerate(rows, start=1)  # id 0 would mean "unmatched"
            ],
        }


def evaluate(
    model: Predictor | Detector,
    index: DetectionIndex,
    *,
    preprocessing: PreprocessingSpec | None = None,
    batch_size: int = 8,
    workers: int = 2,
    progress: Progress | None = None,
    results_file: str | Path | None = None,
) -> DetectionMetrics:
    """Predict on every image of a data set and score it; arguments and errors as of `detect`.

    `results_file`: also write the detections there, in COCO's results format.
    """
    scorer = detect(
        model, index, preprocessing=preprocessing, batch_size=batch_size, workers=workers, progress=progress
    )
    if results_file is not None:
        write_results(results_file, scorer.results())
    return scorer.summarize()


def detect(
    model: Predictor | Detector,
    index: DetectionIndex,
    *,
    preprocessing: PreprocessingSpec | None = None,
    batch_size: int = 8,
    workers: int = 2,
    progress: Progress | None = None,
) -> CocoScorer:
    """Predict on every image of a data set and collect the detections for scoring.

    Images are batched with others of their size only.

    An image that cannot be read is warned of and counts as one without detections.

    Args:
        model: a `SiamDETR`, an exported model, or a bare detector whose classes are those of `index`. It runs on its own
            device. A class-agnostic model (pretrained only) is scored with all boxes as one class.
        index: images and truth.
        preprocessing: needed with a bare detector; else the model's own.
        batch_size: images at a time.
        workers: threads that read images; 0: none.
        progress: called with (images done, images in all).
    Raises:
        DataError: the data set has no labels, or classes that the model does not know.
        ValueError: a bare detector without preprocessing, or whose number of classes is not the data set's.
    """
    predictor = _as_predictor(model, index, preprocessing)
    if is_class_agnostic(predictor.class_names) and not is_class_agnostic(index.class_names):
        index = as_one_class(index)
    labels = match_classes(predictor.class_names, index.class_names, str(index.root))
    scorer = CocoScorer(index)
    done = 0
    for positions, batch in group_by_size(
        read_samples(index, predictor.preprocessing, workers), predictor.preprocessing, batch_size
    ):
        scorer.add([int(index.image_ids[i]) for i in positions], predictor.predict_batch(batch), labels=labels)
        done += len(positions)
        if progress is not None:
            progress(done, len(index))
    if progress is not None and done < len(index):
        progress(len(index), len(index))
    return scorer


def score_results(path: str | Path, index: DetectionIndex) -> DetectionMetrics:
    """The figures of a COCO results file, made by whatever program.

    Raises:
        DataError: the file cannot be used, or the data set has no labels.
    """
    return read_scorer(path, index).summarize()


def read_scorer(path: str | Path, index: DetectionIndex) -> CocoScorer:
    """A scorer of the detections in a COCO results file; errors as of `score_results`."""
    scorer = CocoScorer(index)
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


def _run(truth: dict[str, Any], detections: Results, backend: Backend) -> dict[str, NDArray[np.float64]]:
    """Precision [T, R, K, A, M] and recall [T, K, A, M]; -1 where there is no object. Categories in ascending order."""
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
        evaluation.params.maxDets = list(_MAX_DETECTIONS)
        evaluation.evaluate()
        evaluation.accumulate()
    return cast("dict[str, NDArray[np.float64]]", evaluation.eval)


def _annotations(detections: Results) -> list[dict[str, Any]]:
    """The detections as COCO's evaluation takes them, each written once: at 5,000 images of 100 boxes they are what takes memory."""
    entries = detections.as_dicts()
    for number, entry in enumerate(entries, start=1):
        entry["id"], entry["area"], entry["iscrowd"] = number, entry["bbox"][2] * entry["bbox"][3], 0
    return entries


def _mean(figures: NDArray[np.float64]) -> float | None:
    """Mean of the figures that exist; None when none does."""
    there = figures[figures > -1]
    return float(there.mean()) if there.size else None
