"""Matching, thresholds, confusion and mistakes, counted by hand; AP50 equals COCO's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.data_sets import coco_document, write_coco
from numpy.typing import NDArray

from siamdetr.data.index import DetectionIndex
from siamdetr.data.readers.recognise import open_dataset
from siamdetr.errors import DataError
from siamdetr.evaluation.confusion import confusion_of
from siamdetr.evaluation.matched import FREE, IGNORED, Matched, match_results
from siamdetr.evaluation.mistakes import KINDS, count_mistakes, find_mistakes, worst_mistakes
from siamdetr.evaluation.results import Results
from siamdetr.evaluation.scorer import CocoScorer
from siamdetr.evaluation.thresholds import best_f1, for_precision, threshold_curves

CAT, DOG = (20.0, 10.0, 35.0, 22.0), (25.0, 10.0, 40.0, 22.0)  # the boxes of `coco_document`, in every image


@pytest.fixture
def index(tmp_path: Path) -> DetectionIndex:
    write_coco(tmp_path)
    return open_dataset(tmp_path, split="train")


def results(*rows: tuple[int, int, tuple[float, float, float, float], float]) -> Results:
    """Rows of image id, category id, corners and score."""
    return Results(
        image_ids=np.array([row[0] for row in rows], dtype=np.int64),
        category_ids=np.array([row[1] for row in rows], dtype=np.int64),
        boxes=np.array([row[2] for row in rows], dtype=np.float64).reshape(-1, 4),
        scores=np.array([row[3] for row in rows], dtype=np.float64),
    )


def every_kind(index: DetectionIndex) -> Matched:
    """Three images with one mistake of every kind.

    Image 1: a cat detected twice, and a dog next to a detection called cat, which takes the dog's box.
    Image 2: a loose box, and a detection of nothing. Image 3: no detection.
    """
    return match_results(
        results(
            (1, 1, CAT, 0.9),  # right
            (1, 1, (20.0, 10.0, 34.0, 22.0), 0.8),  # the same cat again
            (2, 2, CAT, 0.7),  # a cat called dog (IoU .5 with the dog it could also be: the dog takes it)
            (2, 1, (0.0, 30.0, 8.0, 38.0), 0.6),  # nothing there
            (3, 1, (20.0, 10.0, 27.0, 22.0), 0.5),  # a poor box: under half of the cat
        ),
        index,
    )


def test_every_kind_of_mistake_is_told_apart(index: DetectionIndex) -> None:
    mistakes = find_mistakes(every_kind(index))
    of_image = {image: [m.kind for m in mistakes if m.image == image] for image in range(3)}
    assert of_image[0] == ["duplicate", "missed"]  # the dog
    assert of_image[1] == ["background", "missed"]  # the cat; the dog's box was good enough
    assert of_image[2] == ["poor box", "missed"]  # the poor box explains the cat, the dog is missed
    assert count_mistakes(mistakes) == {"missed": 3, "wrong class": 0, "poor box": 1, "duplicate": 1, "background": 1}


def test_a_good_box_of_another_class_is_a_wrong_class_and_not_missed_too(tmp_path: Path) -> None:
    document = coco_document(1)
    document["annotations"] = document["annotations"][:1]  # a cat alone
    write_coco(tmp_path, document)
    index = open_dataset(tmp_path, split="train")
    (mistake,) = find_mistakes(match_results(results((1, 2, CAT, 0.9)), index))
    assert (mistake.kind, mistake.truth, round(mistake.overlap, 6)) == ("wrong class", 0, 1.0)
    confusion = confusion_of(match_results(results((1, 2, CAT, 0.9)), index), 0.5)
    assert confusion.counts.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]  # a true cat was called a dog


def test_a_threshold_cuts_detections_and_leaves_the_matches_of_the_others(index: DetectionIndex) -> None:
    matched = every_kind(index)
    assert matched.above(0.75).truths.tolist() == [0, FREE]
    assert len(matched.above(0.9).scores) == 1  # at least the threshold
    assert count_mistakes(find_mistakes(matched.above(0.95)))["missed"] == 6


def test_the_worst_mistakes_are_shared_among_the_kinds(index: DetectionIndex) -> None:
    mistakes = find_mistakes(every_kind(index))
    worst = worst_mistakes(mistakes, 4)
    assert [mistake.kind for mistake in worst] == ["missed", "poor box", "duplicate", "background"]
    assert len(worst_mistakes(mistakes, 24)) == len(mistakes)
    order = [KINDS.index(mistake.kind) for mistake in worst_mistakes(mistakes)]
    assert order == sorted(order)


def test_a_detection_in_a_crowd_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    document = coco_document(1)
    document["annotations"][0]["iscrowd"] = 1
    write_coco(tmp_path, document)
    matched = match_results(results((1, 1, (21.0, 11.0, 25.0, 15.0), 0.9)), open_dataset(tmp_path, split="train"))
    assert matched.truths.tolist() == [IGNORED]
    assert [mistake.kind for mistake in find_mistakes(matched)] == ["missed"]  # the dog; the crowd is nobody's miss


def test_thresholds_by_hand(index: DetectionIndex) -> None:
    curve = threshold_curves(every_kind(index))[0]  # right, wrong, right, wrong, wrong; six objects
    assert curve.precision == pytest.approx([1, 1 / 2, 2 / 3, 2 / 4, 2 / 5])
    assert curve.recall == pytest.approx([1 / 6, 1 / 6, 2 / 6, 2 / 6, 2 / 6])
    best = best_f1(curve)
    assert best is not None
    assert (best.threshold, best.f1) == pytest.approx((0.7, 4 / 9))
    assert for_precision(curve, 0.6).threshold == 0.7
    assert for_precision(curve, 0.9).threshold == 0.9


def test_detections_of_one_score_are_kept_together(index: DetectionIndex) -> None:
    matched = match_results(results((1, 1, CAT, 0.5), (2, 1, (0.0, 30.0, 8.0, 38.0), 0.5)), index)
    curve = threshold_curves(matched)[0]
    assert curve.thresholds.tolist() == [0.5]
    assert curve.precision.tolist() == [0.5]


def test_a_precision_that_no_threshold_reaches_is_refused_with_the_best_there_is(index: DetectionIndex) -> None:
    matched = match_results(results((2, 1, (0.0, 30.0, 8.0, 38.0), 0.5), (1, 1, CAT, 0.4)), index)
    with pytest.raises(DataError, match=r"all classes: no threshold reaches a precision of 0.9 \(best: 0.500\)"):
        for_precision(threshold_curves(matched)[0], 0.9)
    with pytest.raises(DataError, match=r"got 1\.5, expected a share above 0 and at most 1"):
        for_precision(threshold_curves(matched)[0], 1.5)


def test_no_detections(index: DetectionIndex) -> None:
    matched = match_results(results(), index)
    curves = threshold_curves(matched)
    assert [curve.name for curve in curves] == ["all classes", "cat", "dog"]
    assert best_f1(curves[0]) is None
    assert count_mistakes(find_mistakes(matched))["missed"] == 6
    assert confusion_of(matched, 0.5).counts.tolist() == [[0, 0, 3], [0, 0, 3], [0, 0, 0]]


@pytest.mark.parametrize("seed", range(4))
def test_interpolated_precision_is_cocos_ap50(tmp_path: Path, seed: int) -> None:
    """The matching is COCO's: 101 interpolated precisions of each class average to its AP50."""
    random = np.random.default_rng(seed)
    document = coco_document(8)
    for annotation in document["annotations"]:
        x, y = random.uniform(0, 30), random.uniform(0, 20)
        annotation["bbox"] = [x, y, *random.uniform(6, 18, 2).tolist()]
        annotation["iscrowd"] = int(random.random() < 0.1)
    write_coco(tmp_path, document)
    index = open_dataset(tmp_path, split="train")
    rows = []
    for image in range(len(index)):
        near = np.concatenate([index.boxes_of(image)] * 3)
        for box in near + random.normal(0, 2.0, near.shape):
            category = int(random.choice([1, 2]))
            rows.append((int(index.image_ids[image]), category, tuple(box.tolist()), float(random.random())))
    found = results(*rows)
    scorer = CocoScorer(index)
    scorer.add_results(found)
    curves = {curve.name: curve for curve in threshold_curves(match_results(found, index))}
    for row in scorer.summarize(backend="reference").per_class:
        assert _ap(curves[row.name].precision, curves[row.name].recall) == pytest.approx(row.ap50, abs=1e-9)


def _ap(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> float:
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.append(falling, 0.0)[at].mean())
