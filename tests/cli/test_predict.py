"""`siamdetr predict` on folders as they are: bad files, strips, drawings that fail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_models import tiny_model
from PIL import Image
from typer.testing import CliRunner

from siamdetr.cli.__main__ import app
from siamdetr.drawing import boxes as drawing


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_model().save("model.safetensors")
    (tmp_path / "in").mkdir()
    for i in range(3):
        Image.fromarray(np.full((48, 64, 3), 80 * i, np.uint8)).save(f"in/{i}.png")
    return tmp_path


def run(*arguments: object) -> tuple[int, str, list[dict[str, object]]]:
    answer = CliRunner().invoke(app, ["predict", "model.safetensors", *map(str, arguments), "--threshold", "0"])
    file = Path("predictions/predictions.json")
    return answer.exit_code, answer.output, json.loads(file.read_text()) if file.exists() else []


def test_one_bad_image_is_named_and_ends_nothing(place: Path) -> None:
    (place / "in/bad.jpg").write_bytes(b"\xff\xd8\xff")
    (place / "in/empty.png").write_bytes(b"")
    for size in (1, 8):
        code, text, rows = run("in", "--batch-size", size)
        assert code == 1
        assert [row["image"] for row in rows] == ["in/0.png", "in/1.png", "in/2.png"]
        assert "2 of 5 images failed:" in text
        assert "in/bad.jpg" in text
        assert "in/empty.png" in text
        assert sorted(file.name for file in Path("predictions").glob("*.jpg")) == ["0.jpg", "1.jpg", "2.jpg"]


def test_a_folder_of_bad_images_alone_exits_with_1(place: Path) -> None:
    (place / "only").mkdir()
    (place / "only/bad.jpg").write_bytes(b"x")
    code, text, rows = run("only")
    assert (code, rows, "1 of 1 images failed" in text) == (1, [], True)


@pytest.mark.parametrize("size", [(3000, 8), (8, 3000), (1, 1), (1, 70_000), (70_000, 2)])
def test_pictures_of_odd_shape_are_drawn_within_bounds(place: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save("strip.png")
    code, text, rows = run("strip.png", "in/0.png")
    assert code == 0, text
    assert len(rows) == 2
    with Image.open("predictions/strip.jpg") as drawn:
        assert max(drawn.size) <= max(16_384, min(max(size), 16_384))
        assert drawn.size == size or max(size) > 16_384 or size == (1, 1)


def test_small_pictures_are_enlarged_as_before() -> None:
    import supervision as sv

    for size, drawn in (
        ((64, 48), (640, 480)),
        ((640, 480), (640, 480)),
        ((300, 200), (600, 400)),
        ((3000, 8), (3000, 8)),
    ):
        assert drawing.draw(Image.new("RGB", size), sv.Detections.empty()).size == drawn


def test_a_drawing_that_fails_keeps_the_boxes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("broken data stream")

    monkeypatch.setattr(drawing, "draw", fail)
    code, text, rows = run("in")
    assert (code, len(rows)) == (1, 3)
    assert "its boxes are in the JSON, but cannot be drawn (broken data stream)" in text


def test_a_model_that_answers_no_numbers_fails_every_image(place: Path) -> None:
    model = tiny_model()
    for parameter in model.detector.class_head.parameters():
        parameter.data.fill_(float("nan"))
    model.save("model.safetensors")
    for parameter in model.detector.class_head.parameters():
        parameter.data.fill_(0.0)
    code, text, rows = run("in")
    assert (code, rows) == (1, [])
    assert text.count("are not finite numbers") == 3


def test_the_threshold_of_the_model_file_is_obeyed(place: Path) -> None:
    import siamdetr

    model = siamdetr.load("model.safetensors")
    assert model.threshold == 0.5
    answer = CliRunner().invoke(app, ["predict", "model.safetensors", "in"])
    assert answer.exit_code == 0, answer.output
    rows = json.loads(Path("predictions/predictions.json").read_text())
    assert all(box["score"] >= 0.5 for row in rows for box in row["detections"])
