"""The report of an evaluation: its content, its files, and that missing pictures do not stop it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from helpers.data_sets import write_coco
from PIL import Image

from siamdetr.data.index import DetectionIndex
from siamdetr.data.readers.recognise import open_dataset
from siamdetr.evaluation.matched import match_results
from siamdetr.evaluation.results import Results
from siamdetr.evaluation.scorer import CocoScorer
from siamdetr.reports.evaluation_report import Analysis, analyse, write_evaluation
from siamdetr.reports.mistake_pictures import picture_of


@pytest.fixture
def index(tmp_path: Path) -> DetectionIndex:
    write_coco(tmp_path / "data")
    return open_dataset(tmp_path / "data", split="train")


def analysis_of(index: DetectionIndex, threshold: float | None = None) -> tuple[CocoScorer, Analysis]:
    scorer = CocoScorer(index)
    boxes = np.array([[20, 10, 35, 22], [0, 30, 8, 38], [-4, -4, 3, 2]], dtype=np.float64)
    scorer.add_results(Results(np.array([1, 2, 3]), np.array([1, 2, 2]), boxes, np.array([0.9, 0.8, 0.7])))
    return scorer, analyse(match_results(scorer.results(), index), threshold)


def write(folder: Path, index: DetectionIndex) -> str:
    scorer, analysis = analysis_of(index, 0.6)
    path = write_evaluation(folder, scorer.summarize(), analysis, title="val <b>", lead="AP")
    return path.read_text()


def test_the_report_shows_figures_curves_confusion_and_mistakes(tmp_path: Path, index: DetectionIndex) -> None:
    text = write(tmp_path / "out", index)
    for part in ("COCO metrics", "Confusion matrix", "F1 over the threshold", "Precision and recall", "missed cat"):
        assert part in text
    assert "val &lt;b&gt;" in text
    assert text.count("data:image/jpeg") == 7  # two false detections, five of the six objects


def test_the_folder_holds_pictures_and_tables(tmp_path: Path, index: DetectionIndex) -> None:
    write(tmp_path / "out", index)
    assert {path.name for path in (tmp_path / "out/plots").glob("*.png")} == {
        "confusion.png",
        "f1.png",
        "precision-recall.png",
    }
    assert len(list((tmp_path / "out/mistakes").glob("*.jpg"))) == 7
    with (tmp_path / "out/confusion.csv").open() as file:
        assert list(csv.reader(file))[1:] == [
            ["cat", "1", "0", "2"],
            ["dog", "0", "0", "3"],
            ["background", "0", "2", "0"],
        ]
    with (tmp_path / "out/thresholds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["all classes", "cat", "dog"]
    assert rows[1]["threshold"] == "0.9"
    assert rows[2]["threshold"] == ""  # no dog is ever right


def test_an_image_that_is_gone_costs_its_picture_alone(tmp_path: Path, index: DetectionIndex) -> None:
    index.path(1).unlink()
    assert write(tmp_path / "out", index).count("data:image/jpeg") == 4


def test_pictures_of_boxes_outside_the_image(index: DetectionIndex) -> None:
    _, analysis = analysis_of(index, 0.6)
    for mistake in analysis.mistakes:
        picture = Image.open(io.BytesIO(picture_of(mistake, index)))
        assert 1 <= min(picture.size) <= max(picture.size) <= 320


def test_the_threshold_is_that_of_the_best_f1_unless_given(index: DetectionIndex) -> None:
    scorer, analysis = analysis_of(index)
    assert analysis.threshold == 0.9
    assert analyse(match_results(scorer.results(), index), 0.75).threshold == 0.75
