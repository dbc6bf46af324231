"""Pictures and warnings of pretraining runs: their content and place, and no effect on training."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
from helpers.training_data import pretrain_settings, write_data

from siamdetr.drawing.boxes import PALETTE
from siamdetr.drawing.pretext import draw_joined_views, draw_matches, draw_regions
from siamdetr.pretext import collapse
from siamdetr.pretext.collapse import Limit, collapsed
from siamdetr.training.callbacks import diagnostics
from siamdetr.training.pretrain import pretrain
from siamdetr.training.run_report import write_report

GREY = np.full((240, 300, 3), 128, dtype=np.uint8)
BOXES = np.asarray([[0.3, 0.5, 0.2, 0.4], [0.7, 0.3, 0.4, 0.2]], dtype=np.float32)


def colour(i: int) -> tuple[int, int, int]:
    red, green, blue = PALETTE.by_idx(i).as_rgb()
    return red, green, blue


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def losses(folder: Path) -> list[str]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            row["loss"] for row in csv.DictReader(file) if row["loss"]
        ]  # other rows hold the monitors of the regions


@pytest.mark.parametrize("method", ["siamese", "detreg"])
def test_a_run_shows_what_it_saw_and_what_it_found_at_several_steps(
    method: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pretrain(pretrain_settings(data, tmp_path / "run", method=method)).folder
    names = sorted(file.stem for file in (run / "diagnostics").iterdir())
    matched = [name for name in names if name.startswith("matched")]
    assert [name for name in names if name.startswith("sample")] == ["sample-0", "sample-1", "sample-2"]
    assert [name.rpartition("-")[0] for name in matched] == [
        f"matched-{image}-{step:07d}" for image in range(3) for step in (0, 1, 2, 4)
    ]
    assert all(0 <= float(name.rpartition("-")[2]) <= 1 for name in matched)
    page = (run / "report.html").read_text()
    assert "What the method is shown" in page
    assert "Matched predictions over time" in page
    assert page.count("step 4, mean IoU") == 2 * 3  # as caption and as description
    assert page.count("data:image/jpeg") == 3 + 12
    assert "Collapse monitors" in page

    monkeypatch.setattr(diagnostics, "WHEN", ())
    without = pretrain(pretrain_settings(data, tmp_path / "without", method=method)).folder
    assert losses(without) == losses(run)


def test_a_collapse_is_said_once_in_the_log_and_stands_in_the_report(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collapse, "LIMITS", (Limit("monitor_query_std", 99.0, True, "the decoder sleeps"),))
    with caplog.at_level(logging.WARNING, logger="siamdetr"):
        run = pretrain(pretrain_settings(data, tmp_path / "run", method="updetr", steps=2)).folder
    said = [record.getMessage() for record in caplog.records if "collapse" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("step 1: collapse: the decoder sleeps (monitor_query_std is ")
    assert "expected at least 99). Look at the pictures in report.html; lower the learning rate" in said[0]
    page = (run / "report.html").read_text()
    assert "Collapse: the decoder sleeps" in page
    monkeypatch.undo()
    assert "Collapse: " not in write_report(run).read_text()


def test_collapse_is_judged_by_the_monitors_alone() -> None:
    healthy = {"monitor_query_std": 0.05, "monitor_image_cosine": 0.98, "monitor_view_cosine": 1.0, "loss": 0.0}
    assert collapsed(healthy) == {}
    assert collapsed({}) == {}
    texts = collapsed({"monitor_query_std": 1e-4, "monitor_image_cosine": 0.9999})
    assert texts["monitor_query_std"] == (
        "the decoder answers every image alike (monitor_query_std is 0.0001, expected at least 0.005)"
    )
    assert texts["monitor_image_cosine"].startswith("the encoder gives every image the same mean (monitor_image_cosine")


def test_regions_are_outlined_in_their_colours() -> None:
    picture = draw_regions(GREY, BOXES)
    assert picture.size == (300, 240)
    assert picture.getpixel((60, 120)) == colour(0)  # left edge of the first
    assert picture.getpixel((210, 48)) == colour(1)  # upper edge of the second
    assert picture.getpixel((90, 120)) == (128, 128, 128)
    assert draw_regions(GREY[:60, :90], BOXES[:0]).size == (360, 240)  # small pictures are enlarged
    assert draw_regions(np.zeros((24, 24, 3), dtype=np.uint8), BOXES).size == (240, 240)


def test_the_same_region_of_two_views_is_joined() -> None:
    picture = draw_joined_views((GREY, GREY), (BOXES, BOXES[:, [0, 1, 2, 3]]))
    gap = round(0.16 * 300)
    assert picture.size == (600 + gap, 240)
    assert picture.getpixel((300 + gap // 2, 120)) == colour(0)  # both centres are at half the height
    assert picture.getpixel((300 + gap // 2, 72)) == colour(1)
    assert picture.getpixel((300 + gap // 2, 200)) == (255, 255, 255)


def test_targets_are_tinted_and_dashed_and_predictions_solid() -> None:
    picture = draw_matches(GREY, BOXES, BOXES + np.float32([0.1, 0, 0, 0]))
    inside = np.asarray(picture.getpixel((100, 120)), dtype=float)
    assert np.abs(inside - (128 + (np.asarray(colour(0)) - 128) * 36 / 255)).max() < 3
    assert picture.getpixel((90, 120)) == colour(0)  # left edge of the prediction
    dashes = [picture.getpixel((60, y)) == colour(0) for y in range(75, 165)]  # left edge of the target
    assert 0.3 < np.mean(dashes) < 0.7
    assert draw_matches(GREY, BOXES[:0], BOXES[:0]).getpixel((5, 5)) == (128, 128, 128)
