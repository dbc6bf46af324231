"""`predict --save`: the files that other tools read, read by them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.data_sets import write_image
from helpers.tiny_models import tiny_model
from typer.testing import CliRunner

from siamdetr.cli.__main__ import app
from siamdetr.data.readers.recognise import open_dataset


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_model().save("model.safetensors")
    for name in ("in/a/1.png", "in/b/1.png", "in/2.png"):
        write_image(tmp_path / name, seed=len(name), size=(70, 50))
    return tmp_path


def predict(*arguments: object) -> tuple[int, str, list[dict[str, object]]]:
    call = ["predict", "model.safetensors", "in", "-o", "out", *map(str, arguments)]
    answer = CliRunner().invoke(app, call)
    rows = Path("out/predictions.json")
    return (
        answer.exit_code,
        f"{answer.output} {answer.exception}",
        json.loads(rows.read_text()) if rows.exists() else [],
    )


def test_every_format_holds_the_detections_of_the_json(place: Path) -> None:
    code, text, rows = predict("--threshold", 0.3, "--save", "txt", "--save", "csv", "--save", "coco", "--save", "csv")
    assert code == 0, text
    boxes = [box for row in rows for box in row["detections"]]  # type: ignore[attr-defined]
    assert boxes
    with Path("out/predictions.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["score"]) for row in table] == [box["score"] for box in boxes]
    assert [row["class"] for row in table] == [box["name"] for box in boxes]

    document = json.loads(Path("out/predictions.coco.json").read_text())
    assert [image["file_name"] for image in document["images"]] == [row["image"] for row in rows]
    assert [one["score"] for one in document["annotations"]] == [box["score"] for box in boxes]
    ids = dict(zip(("cat", "dog", "cell"), (1, 5, 9), strict=True))
    assert [one["category_id"] for one in document["annotations"]] == [ids[box["name"]] for box in boxes]

    lines = {path.stem: path.read_text().split("\n")[:-1] for path in Path("out/labels").glob("*.txt")}
    assert lines.pop("classes") == ["cat", "dog", "cell"]
    assert sorted(lines) == ["1", "1-2", "2"]
    assert sum(map(len, lines.values())) == len(boxes)
    for row in rows:
        stem = {"in/a/1.png": "1", "in/b/1.png": "1-2", "in/2.png": "2"}[str(row["image"])]
        for line, box in zip(lines[stem], row["detections"], strict=True):  # type: ignore[call-overload]
            label, cx, cy, w, h, score = (float(value) for value in line.split())
            corners = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) * (70, 50, 70, 50)
            assert np.allclose(corners, box["box"], atol=1e-3)
            assert (int(label), score) == (box["label"], box["score"])


def test_pycocotools_and_our_reader_open_the_coco_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO

    predict("--threshold", 0, "--save", "coco")
    coco = COCO("out/predictions.coco.json")
    assert len(coco.getImgIds()) == 3
    Path("data").mkdir()
    Path("out/predictions.coco.json").rename("data/instances_train.json")
    (place / "in").rename(place / "data/in")
    index = open_dataset(place / "data", split="train")
    assert (len(index), index.class_names, index.category_ids) == (3, ("cat", "dog", "cell"), (1, 5, 9))


def test_an_unknown_format_and_a_target_that_is_read_are_refused_before_the_model_runs(place: Path) -> None:
    code, text, rows = predict("--save", "xml")
    assert (code, rows) == (1, [])
    assert "--save xml: unknown format, expected txt, csv, coco" in text
    code, text, _ = predict("--save", "csv", "--json", "out/predictions.csv")
    assert code == 1
    assert "--json writes that file too" in text
