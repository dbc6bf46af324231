"""COCO's figures, results files, class matching and drawing."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import supervision as sv
import torch
from PIL import Image

from siamdetr.api import SiamDETR
from siamdetr.data.index import DetectionIndex
from siamdetr.data.readers.recognise import open_dataset
from siamdetr.drawing.boxes import draw, draw_side_by_side, truth_of
from siamdetr.errors import DataError
from siamdetr.evaluation.classes import match_classes
from siamdetr.evaluation.coco import evaluate, score_results
from siamdetr.evaluation.results import read_results, write_results
from siamdetr.evaluation.scorer import CocoScorer
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.inference.predictor import ScoredBoxes
from siamdetr.models.detector import Detector
from siamdetr.settings.detector import DetectorSettings

SPEC = PreprocessingSpec.from_size(64)
TINY = {"backbone": "resnet18", "dim": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 32}


def data_set(root: Path, *, seed: int = 0, images: int = 6) -> Path:
    """A COCO data set of three classes: gaps in its category ids, crowds, an image without objects."""
    generator = np.random.default_rng(seed)
    (root / "val").mkdir(parents=True)
    (root / "annotations").mkdir()
    files, annotations = [], []
    for number in range(images):
        height, width = (120, 160) if number % 2 else (150, 110)
        name = f"{number}.png"
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / "val" / name)
        files.append({"id": 10 + 3 * number, "file_name": name, "height": height, "width": width})
        for _ in range(0 if number == 0 else 7):
            x, y = generator.uniform(0, 60, 2)
            w, h = generator.uniform(8, 48, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 + 3 * number,
                    "category_id": int(generator.choice([90, 3, 17])),
                    "bbox": [float(x), float(y), float(w), float(h)],
                    "area": float(w * h * 0.7),
                    "iscrowd": int(generator.random() < 0.15),
                }
            )
    categories = [{"id": 90, "name": "cup"}, {"id": 3, "name": "cell"}, {"id": 17, "name": "cat"}]
    truth = {"images": files, "annotations": annotations, "categories": categories}
    (root / "annotations" / "instances_val.json").write_text(json.dumps(truth))
    return root


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DetectionIndex:
    return open_dataset(data_set(tmp_path_factory.mktemp("coco")), split="val")


def noisy(index: DetectionIndex, *, seed: int = 1, extra: int = 20) -> ScoredBoxes:
    """Detections of every image: half of its boxes, moved a little, and some false ones."""
    generator = np.random.default_rng(seed)
    most = int(index.box_counts().max()) + extra
    scores, labels, boxes = (
        np.zeros((len(index), most)),
        np.zeros((len(index), most), int),
        np.zeros((len(index), most, 4)),
    )
    for i in range(len(index)):
        truth = index.boxes_of(i)
        count = len(truth)
        scores[i] = generator.uniform(0, 0.6, most)
        labels[i] = generator.integers(0, index.num_classes, most)
        boxes[i, :, :2] = generator.uniform(0, 60, (most, 2))
        boxes[i, :, 2:] = boxes[i, :, :2] + generator.uniform(5, 40, (most, 2))
        boxes[i, :count] = truth + generator.normal(0, 2, truth.shape)
        labels[i, :count] = index.labels_of(i)
        scores[i, :count] = generator.uniform(0.2, 1, count)
    return ScoredBoxes(scores.astype(np.float32), labels.astype(np.int64), boxes.astype(np.float32))


def perfect(index: DetectionIndex) -> CocoScorer:
    """A scorer that was given the truth, crowds left out."""
    scorer = CocoScorer(index)
    for i in range(len(index)):
        kept = ~index.crowd[index.box_slice(i)]
        boxes, labels = index.boxes_of(i)[kept], index.labels_of(i)[kept].astype(np.int64)
        scorer.add(
            [int(index.image_ids[i])],
            ScoredBoxes(np.ones((1, len(boxes)), dtype=np.float32), labels[None], boxes[None]),
        )
    return scorer


def test_the_fast_figures_are_those_of_pycocotools(index: DetectionIndex, capfd: pytest.CaptureFixture[str]) -> None:
    scorer = CocoScorer(index)
    scorer.add(index.image_ids.tolist(), noisy(index))
    fast, reference = scorer.summarize(), scorer.summarize(backend="reference")
    assert 0.02 < fast.ap < 0.98
    for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100"):
        ours, theirs = getattr(fast, name), getattr(reference, name)
        assert ours == theirs if theirs is None else ours == pytest.approx(theirs, abs=1e-12), name
    for a, b in zip(fast.per_class, reference.per_class, strict=True):
        assert (a.name, a.num_boxes) == (b.name, b.num_boxes)
        assert (a.ap, a.ap50, a.ap75, a.ar100) == pytest.approx((b.ap, b.ap50, b.ap75, b.ar100), abs=1e-12)
    assert capfd.readouterr().out == ""


def test_the_truth_as_prediction_scores_one(index: DetectionIndex) -> None:
    metrics = perfect(index).summarize()
    assert (metrics.ap, metrics.ap50, metrics.ap75, metrics.ar100) == pytest.approx((1, 1, 1, 1))
    assert metrics.ap_large is None
    assert [row.name for row in metrics.per_class] == list(index.class_names)
    assert sum(row.num_boxes for row in metrics.per_class) == int((~index.crowd).sum())


def test_the_truth_of_coco_as_prediction_scores_one(real_data: Path) -> None:
    index = open_dataset(real_data / "coco-mini", split="val")
    metrics = perfect(index).summarize()
    assert index.crowd.any()
    assert (metrics.ap, metrics.ap50, metrics.ap75, metrics.ar100) == pytest.approx((1, 1, 1, 1))


def test_crowds_are_neither_objects_nor_mistakes(index: DetectionIndex) -> None:
    scorer = perfect(index)
    for i in range(len(index)):
        kept = index.crowd[index.box_slice(i)]
        boxes, labels = index.boxes_of(i)[kept], index.labels_of(i)[kept].astype(np.int64)
        scored = ScoredBoxes(np.ones((1, len(boxes)), dtype=np.float32), labels[None], boxes[None])
        scorer.add([int(index.image_ids[i])], scored)
    assert scorer.summarize().ap == pytest.approx(1)


def test_no_detections_score_zero(index: DetectionIndex) -> None:
    metrics = CocoScorer(index).summarize()
    assert (metrics.ap, metrics.ap50, metrics.ar100) == (0, 0, 0)
    assert CocoScorer(index).summarize(backend="reference") == metrics


def test_results_files_are_read_back_and_score_the_same(index: DetectionIndex, tmp_path: Path) -> None:
    scorer = CocoScorer(index)
    scorer.add(index.image_ids.tolist(), noisy(index))
    write_results(tmp_path / "found.json", scorer.results())
    entry = json.loads((tmp_path / "found.json").read_text())[0]
    assert set(entry) == {"image_id", "category_id", "bbox", "score"}
    assert entry["category_id"] in (90, 3, 17)
    assert score_results(tmp_path / "found.json", index) == scorer.summarize()


def test_errors_of_results_files_say_what_is_wrong(index: DetectionIndex, tmp_path: Path) -> None:
    good = {"image_id": 10, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}
    cases = [
        ("{", "not JSON"),
        ('{"images": []}', "got a JSON dict, expected a list of detections"),
        (json.dumps([{**good, "bbox": [1, 2]}]), "entry 0: got .* expected image_id, category_id"),
        (json.dumps([good, {**good, "score": None}]), "entry 1: got"),
        (json.dumps([{**good, "image_id": 11}]), "image_id 11 is not among the data set's 6 images"),
        (json.dumps([{**good, "category_id": 1}]), "category_id 1 is not among the data set's 3 categories"),
        ('[{"image_id": 10, "category_id": 3, "bbox": [1, 2, 3, NaN], "score": 1}]', "not finite"),
    ]
    for text, message in cases:
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(DataError, match=message):
            read_results(tmp_path / "results.json", index)
    with pytest.raises(DataError, match="cannot be read"):
        read_results(tmp_path / "none.json", index)


def test_a_scorer_refuses_what_it_cannot_score(index: DetectionIndex) -> None:
    with pytest.raises(ValueError, match="image id 11 is not among the 6"):
        CocoScorer(index).add([11], ScoredBoxes(np.zeros((1, 1)), np.zeros((1, 1), int), np.zeros((1, 1, 4))))
    with pytest.raises(ValueError, match="got 2 image ids for 1 images"):
        CocoScorer(index).add([10, 13], ScoredBoxes(np.zeros((1, 1)), np.zeros((1, 1), int), np.zeros((1, 1, 4))))
    with pytest.raises(DataError, match="not one labelled box"):
        CocoScorer(index.without_labels())


def test_classes_are_matched_by_name() -> None:
    assert match_classes(["b", "a", "z"], ["a", "b"], "data").tolist() == [1, 0, -1]
    with pytest.raises(DataError, match=r"data: the model does not know \[c\].* 2 classes: \[a, c\].* has 2: \[a, b\]"):
        match_classes(["a", "b"], ["a", "c"], "data")


@pytest.fixture(scope="module")
def model() -> SiamDETR:
    torch.manual_seed(0)
    detector = Detector(DetectorSettings(**TINY, num_classes=4, num_queries=10))
    return SiamDETR.from_parts(detector, class_names=("cat", "dog", "cell", "cup"), preprocessing=SPEC)


def test_evaluation_is_the_same_whatever_the_batches(index: DetectionIndex, model: SiamDETR, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    one = evaluate(model, index, batch_size=1, workers=0, progress=lambda done, total: seen.append((done, total)))
    many = evaluate(model, index, batch_size=4, workers=2, results_file=tmp_path / "results.json")
    assert seen == [(done, 6) for done in range(1, 7)]
    assert many.ap == pytest.approx(one.ap, abs=1e-6)
    assert score_results(tmp_path / "results.json", index) == many
    assert {entry["category_id"] for entry in json.loads((tmp_path / "results.json").read_text())} <= {3, 17, 90}


def test_a_bare_detector_takes_the_data_set_s_classes_and_keeps_its_mode(index: DetectionIndex) -> None:
    detector = Detector(DetectorSettings(**TINY, num_classes=3, num_queries=10)).train()
    evaluate(detector, index, preprocessing=SPEC, workers=0)
    assert detector.training
    with pytest.raises(ValueError, match="a bare detector does not know its preprocessing"):
        evaluate(detector, index)
    with pytest.raises(ValueError, match=r"the detector has 5 classes, the data set .* has 3"):
        evaluate(Detector(DetectorSettings(**TINY, num_classes=5)), index, preprocessing=SPEC)


def test_a_pretrained_model_is_scored_with_all_boxes_as_one_class(index: DetectionIndex) -> None:
    detector = Detector(DetectorSettings(**TINY, num_classes=1, num_queries=10))
    model = SiamDETR.from_parts(detector, class_names=("object",), preprocessing=SPEC, class_agnostic=True)
    metrics = evaluate(model, index, workers=0)
    assert [row.name for row in metrics.per_class] == ["object"]
    assert metrics.per_class[0].num_boxes == int((~index.crowd).sum())


def test_a_model_of_other_classes_is_refused(index: DetectionIndex) -> None:
    detector = Detector(DetectorSettings(**TINY, num_classes=2))
    model = SiamDETR.from_parts(detector, class_names=("cup", "tree"), preprocessing=SPEC)
    with pytest.raises(DataError, match=r"does not know \[cell, cat\]"):
        evaluate(model, index)


def test_an_unreadable_image_counts_as_one_without_detections(
    tmp_path: Path, model: SiamDETR, caplog: pytest.LogCaptureFixture
) -> None:
    index = open_dataset(data_set(tmp_path), split="val")
    index.path(2).write_bytes(b"broken")
    with caplog.at_level(logging.WARNING):
        evaluate(model, index, workers=2)
    assert "without detections" in caplog.text
    assert "2.png: not an image" in caplog.text


def test_pictures_are_enlarged_by_a_whole_factor_and_drawn_upon(index: DetectionIndex) -> None:
    image = Image.open(index.path(1))
    truth = truth_of(index, 1)
    drawn = draw(image, truth)
    assert drawn.size == (160 * 4, 120 * 4)
    plain = draw(image, sv.Detections.empty())
    assert plain.size == drawn.size
    assert np.asarray(plain).tobytes() != np.asarray(drawn).tobytes()
    assert image.size == (160, 120)


def test_truth_and_prediction_stand_side_by_side(index: DetectionIndex) -> None:
    truth = truth_of(index, 1)
    both = draw_side_by_side(index.path(1), truth, sv.Detections.empty(), least_side=120)
    assert both.width > 2 * 160
    assert both.height > 120
