"""Evaluation of odd data: ids of every kind, crowded images, failing images, a class named object."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.data_sets import coco_document, write_coco, write_image, write_voc

from siamdetr.api import SiamDETR
from siamdetr.data.index import DetectionIndex
from siamdetr.data.readers.recognise import open_dataset
from siamdetr.errors import DataError
from siamdetr.evaluation.coco import detect, evaluate, score_results
from siamdetr.evaluation.results import write_results
from siamdetr.evaluation.scorer import CocoScorer
from siamdetr.images.preprocessing import Prepared, PreprocessingSpec
from siamdetr.inference.predictor import ScoredBoxes
from siamdetr.inference.pytorch import PyTorchPredictor
from siamdetr.model_file import ModelMetadata
from siamdetr.models.detector import Detector
from siamdetr.settings.detector import DetectorSettings

SPEC = PreprocessingSpec.from_size(64)
TINY = {"backbone": "resnet18", "dim": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 32}


def perfect(index: DetectionIndex, max_detections: int) -> CocoScorer:
    """A scorer that was given the truth."""
    scorer = CocoScorer(index, max_detections)
    for i in range(len(index)):
        boxes, labels = index.boxes_of(i), index.labels_of(i).astype(np.int64)
        scores = np.ones((1, len(boxes)), dtype=np.float32)
        scorer.add([int(index.image_ids[i])], ScoredBoxes(scores, labels[None], boxes[None]))
    return scorer


@pytest.mark.parametrize("first", [0, -4, 2**31 + 5, 2**53 + 1, 2**62 + 1, 2**64 + 3, "a", "12"])
def test_the_truth_as_results_scores_one_whatever_the_ids(first: int | str, tmp_path: Path) -> None:
    document = coco_document(3)
    own = [first + k if isinstance(first, int) else f"{first}{k}" for k in range(3)]
    for entry in document["images"]:
        entry["file_name"] = f"{entry['id']:03}.jpg"
    write_coco(tmp_path, document)
    for entry in document["images"]:
        entry["id"] = own[entry["id"] - 1]
    for entry in document["annotations"]:
        entry["image_id"] = own[entry["image_id"] - 1]
        entry["category_id"] += 2**53
    for entry in document["categories"]:
        entry["id"] += 2**53
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(document))
    truth = open_dataset(tmp_path)
    scorer = perfect(truth, 200)
    for backend in ("fast", "reference"):
        assert scorer.summarize(backend=backend).ap == 1
    write_results(tmp_path / "found.json", scorer.results(), truth)
    written = json.loads((tmp_path / "found.json").read_text())
    assert {entry["image_id"] for entry in written} == set(own)
    assert {entry["category_id"] for entry in written} == {2**53 + 1, 2**53 + 2}
    assert score_results(tmp_path / "found.json", truth).ap == 1


def test_numbered_images_are_said_where_results_are_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    truth = open_dataset(write_voc(tmp_path), split="train")
    write_results(tmp_path / "found.json", perfect(truth, 200).results(), truth)
    assert "have no ids of their own" in caplog.text


def tray(root: Path, objects: int = 150) -> DetectionIndex:
    """One image of many disjoint objects."""
    document = coco_document(1)
    document["annotations"] = [
        {"id": k + 1, "image_id": 1, "category_id": 1, "bbox": [k % 30 * 2, k // 30 * 3, 2, 3]} for k in range(objects)
    ]
    write_coco(root, document)
    return open_dataset(root)


def test_more_objects_than_detections_count_are_said_and_can_be_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth = tray(tmp_path)
    write_results(tmp_path / "found.json", perfect(truth, 200).results(), truth)
    assert score_results(tmp_path / "found.json", truth).ap < 0.8
    assert "1 images of" in caplog.text
    assert "have more than 100 objects (the most: 150)" in caplog.text
    caplog.clear()
    metrics = score_results(tmp_path / "found.json", truth, max_detections=150)
    assert (metrics.ap, metrics.ar100, metrics.max_detections, caplog.text) == (1, 1, 150, "")


@pytest.mark.parametrize("classifier", ["focal", "softmax"])
def test_a_model_returns_as_many_boxes_as_it_has_queries_or_as_it_is_told(classifier: str, tmp_path: Path) -> None:
    truth = tray(tmp_path)
    for asked, expected in ((None, 120), (30, 30)):
        settings = DetectorSettings.model_validate(
            TINY | {"num_classes": 2, "num_queries": 120, "classifier": classifier, "max_detections": asked}
        )
        model = SiamDETR.from_parts(Detector(settings), class_names=("cat", "dog"), preprocessing=SPEC)
        found = model.predict(truth.path(0), threshold=0.0)
        assert len(found) == expected
        assert (np.diff(found.confidence) <= 0).all()


class Failing(PyTorchPredictor):
    """Fails on images that are wider than high by more than a factor."""

    def predict_batch(self, batch: Prepared) -> ScoredBoxes:
        if (batch.original_sizes[:, 1] > 2 * batch.original_sizes[:, 0]).any():
            raise ValueError("too thin")
        return super().predict_batch(batch)


@pytest.mark.parametrize("thin", [1, 4])
def test_an_image_that_the_model_fails_on_is_named_and_skipped(
    thin: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_coco(tmp_path, coco_document(12))
    for k in range(thin):
        write_image(tmp_path / "train" / f"{k + 1:03}.jpg", size=(200, 20))
    truth = open_dataset(tmp_path)
    detector = Detector(DetectorSettings(**TINY, num_classes=2, num_queries=10))
    model = Failing(detector.eval(), ("cat", "dog"), PreprocessingSpec.from_size((32, 32)))
    if thin > 3:
        with pytest.raises(
            DataError, match="the model failed on 4 of 12 images, at most 3 are skipped; the last error: too thin"
        ):
            evaluate(model, truth, workers=0)
        return
    scorer = detect(model, truth, workers=0)
    assert scorer.skipped == ("train/001.jpg",)
    assert "train/001.jpg: skipped, no detections could be made of it (too thin)" in caplog.text
    assert len(np.unique(scorer.results().image_ids)) == 11
    assert scorer.summarize().ap >= 0


def test_a_class_that_is_called_object_is_a_class_like_any_other(tmp_path: Path) -> None:
    write_coco(tmp_path)
    index = open_dataset(tmp_path)
    detector = Detector(DetectorSettings(**TINY, num_classes=1, num_queries=10))
    model = SiamDETR.from_parts(
        detector, class_names=("object",), preprocessing=SPEC, lineage=("finetune: x, 3 steps",)
    )
    with pytest.raises(DataError, match="the model does not know"):
        evaluate(model, index, workers=0)
    old = {"class_names": ["object"], "preprocessing": SPEC, "lineage": ["pretext: siamese on x, 3 steps"]}
    assert ModelMetadata.model_validate(old).class_agnostic
    assert not ModelMetadata.model_validate(old | {"lineage": [*old["lineage"], "finetune: x, 2 steps"]}).class_agnostic
    assert not ModelMetadata.model_validate(old | {"class_names": ["cat"]}).class_agnostic
