"""Likely label errors: planted ones are found, and labels that a model agrees with are left alone."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from helpers.data_sets import write_coco
from helpers.tiny_models import tiny_model
from PIL import Image
from typer.testing import CliRunner

from siamdetr.cli.__main__ import app
from siamdetr.data.index import DetectionIndex
from siamdetr.data.readers.recognise import open_dataset
from siamdetr.evaluation.matched import Matched, match_results
from siamdetr.evaluation.results import Results
from siamdetr.evaluation.suspects import believed_from, find_suspects
from siamdetr.inference.attention_maps import RecordedInspection
from siamdetr.reports.label_errors import picture_of, write_label_errors

CAT, DOG = 1, 2
TRUE_CAT, TRUE_DOG = [20.0, 10, 35, 22], [25.0, 10, 40, 22]  # of every image of the data set


@pytest.fixture
def index(tmp_path: Path) -> DetectionIndex:
    write_coco(tmp_path / "data")
    return open_dataset(tmp_path / "data", split="train")


def matched(index: DetectionIndex, *rows: tuple[int, int, list[float], float]) -> Matched:
    images, categories, boxes, scores = zip(*rows, strict=True)
    results = Results(np.array(images), np.array(categories), np.array(boxes), np.array(scores, dtype=np.float64))
    return match_results(results, index)


def agreeing(image: int, score: float = 0.9) -> list[tuple[int, int, list[float], float]]:
    return [(image, CAT, TRUE_CAT, score), (image, DOG, TRUE_DOG, score)]


def test_a_model_that_agrees_with_the_labels_suspects_nothing(index: DetectionIndex) -> None:
    assert find_suspects(matched(index, *agreeing(1), *agreeing(2), *agreeing(3)), 0.5) == []


def test_planted_errors_are_found_and_ranked(index: DetectionIndex) -> None:
    elsewhere, wide = [0.0, 25, 12, 38], [20.0, 10, 38, 30]
    found = find_suspects(
        matched(
            index,
            *agreeing(1),
            (1, CAT, elsewhere, 0.8),  # no box is there
            (1, DOG, [1.0, 25, 13, 38], 0.7),  # the same object under another name
            (1, CAT, [45.0, 25, 55, 38], 0.4),  # below the threshold
            (2, DOG, [19.0, 10, 34, 22], 0.95),  # called a cat; the dog of the image is another object
            (2, DOG, TRUE_DOG, 0.9),
            (3, CAT, wide, 0.85),  # a box that is placed otherwise
            (3, DOG, TRUE_DOG, 0.9),
        ),
        0.5,
    )
    assert [(one.kind, int(index.image_ids[one.image])) for one in found] == [
        ("wrong class", 2),
        ("missing box", 1),
        ("loose box", 3),
    ]
    missing = found[1]
    assert (missing.truth, missing.overlap, missing.box) == (None, 0.0, tuple(elsewhere))
    assert found[2].truth == index.box_slice(2).start
    assert found[2].overlap == pytest.approx(0.5)
    assert found[2].rank == pytest.approx(0.85 * 0.5)


def test_crowds_hide_what_lies_in_them(index: DetectionIndex) -> None:
    crowded = dataclasses.replace(index, crowd=np.array([True] + [False] * 5))
    assert find_suspects(matched(crowded, (1, DOG, [18.0, 9, 33, 20], 0.9)), 0.5) == []


def test_a_model_without_a_threshold_is_believed_from_that_of_the_best_f1(index: DetectionIndex) -> None:
    rows = [*agreeing(1), *agreeing(2, 0.8), (3, CAT, [0.0, 30, 9, 38], 0.3)]
    assert believed_from(matched(index, *rows)) == 0.8
    assert believed_from(matched(index, (3, CAT, [0.0, 30, 9, 38], 0.3))) == 1.0


def test_the_report_has_crops_attention_and_a_table(index: DetectionIndex, tmp_path: Path) -> None:
    model = tiny_model()
    rows = [(1, CAT, [0.0, 25, 12, 38], 0.8), (2, DOG, [19.0, 10, 34, 22], 0.95)]
    suspects = find_suspects(matched(index, *rows), 0.5)
    path = write_label_errors(tmp_path / "out", suspects, index, model.inspect, title="<doctor>", lead="Two.")
    text = path.read_text()
    assert "&lt;doctor&gt;" in text
    assert text.count("data:image/jpeg") == 2
    assert {file.name for file in (tmp_path / "out/suspects").iterdir()} == {"missing box 01.jpg", "wrong class 01.jpg"}
    with (tmp_path / "out/suspects.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["kind"], row["file"], row["labelled class"]) for row in table] == [
        ("wrong class", "train/002.jpg", "cat"),
        ("missing box", "train/001.jpg", ""),
    ]
    index.path(0).unlink()
    assert write_label_errors(tmp_path / "again", suspects, index, model.inspect, title="", lead="").is_file()


def test_where_the_decoder_looked_stands_beside_the_crop(index: DetectionIndex, tmp_path: Path) -> None:
    suspect = find_suspects(matched(index, (1, CAT, [0.0, 25, 12, 38], 0.8)), 0.5)[0]
    model = tiny_model()
    with_attention = Image.open(io.BytesIO(picture_of(suspect, index, model.inspect)))
    seen = model.inspect(index.path(0))
    bare = RecordedInspection(seen.scored, seen.size, None)  # as of an export without the output `attention`
    without = Image.open(io.BytesIO(picture_of(suspect, index, lambda _: bare)))
    assert with_attention.height == without.height
    assert with_attention.width == 2 * without.width + 6


def test_the_doctor_with_a_model_writes_a_report_of_each_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_coco(tmp_path / "data")
    file.write_text(
        file.read_text()
        .replace('"id": 2, "name": "dog"', '"id": 5, "name": "dog"')
        .replace('"category_id": 2', '"category_id": 5')
    )
    tiny_model().save("model.safetensors")
    answer = CliRunner().invoke(app, ["doctor", "data", "--model", "model.safetensors", "-o", "out"])
    assert answer.exit_code == 0, answer.output
    assert "likely label errors in 'train'" in answer.output
    assert Path("out/train/report.html").is_file()
    refused = CliRunner().invoke(app, ["doctor", "data", "-o", "out"])
    assert refused.exit_code == 2
    assert "give --model" in refused.output
    inside = CliRunner().invoke(app, ["doctor", "data", "--model", "model.safetensors", "-o", "data/out"])
    assert "lies in data, which is read" in str(inside.exception)
