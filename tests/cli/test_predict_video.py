"""`siamdetr predict` on videos and large images, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.command import run_command
from helpers.data_sets import write_image
from helpers.tiny_models import tiny_model

from siamdetr.inference.video import VideoWriter


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predict") / "model.safetensors"
    tiny_model().save(path)
    return path


def predict(*arguments: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    return run_command("predict", *arguments, capsys=capsys, monkeypatch=monkeypatch)


def video(path: Path, frames: int = 5) -> Path:
    writer = VideoWriter(path, rate=10)
    random = np.random.default_rng(0)
    for n in range(frames):
        writer.write(random.integers(0, 256, (64, 96, 3), dtype=np.uint8), n / 10)
    writer.close()
    return path


def test_a_video_becomes_a_video_and_a_line_a_frame(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = video(tmp_path / "a.mp4"), tmp_path / "out"
    code, text = predict(
        model, source, "-o", out, "--threshold", 0.1, "--stride", 2, capsys=capsys, monkeypatch=monkeypatch
    )
    assert code == 0, text
    rows = [json.loads(line) for line in (out / "a.jsonl").read_text().splitlines()]
    assert [row["frame"] for row in rows] == [0, 2, 4]
    assert rows[1]["seconds"] == pytest.approx(0.2, abs=1e-3)
    assert all(0 <= value <= 96 for row in rows for found in row["detections"] for value in found["box"])
    with av.open(str(out / "a.mp4")) as written:
        assert len(list(written.decode(video=0))) == 3
    assert sorted(path.name for path in out.iterdir()) == ["a.jsonl", "a.mp4"]


def test_a_bad_video_does_not_cost_the_others(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no")
    good, out = video(tmp_path / "good.mp4", 2), tmp_path / "out"
    code, text = predict(model, tmp_path / "bad.mp4", good, "-o", out, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 1
    assert "bad.mp4: cannot be opened" in text
    assert (out / "good.mp4").exists()


def test_what_a_call_would_not_use_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = write_image(tmp_path / "x.png", size=(90, 70))
    code, text = predict(model, image, "--stride", 2, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 2
    assert "these are images" in text
    code, text = predict(model, image, "--overlap", 0.3, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 2
    assert "give --tile SIDE" in text
    code, text = predict(model, image, video(tmp_path / "a.mp4", 1), capsys=capsys, monkeypatch=monkeypatch)
    assert code == 1
    assert "predict images and videos in calls of their own" in text


def test_tiles_add_detections(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = write_image(tmp_path / "x.png", size=(160, 120))
    counts = []
    for more in ((), ("--tile", 64)):
        out = tmp_path / f"out{len(counts)}"
        code, text = predict(model, image, "-o", out, "--threshold", 0.2, *more, capsys=capsys, monkeypatch=monkeypatch)
        assert code == 0, text
        counts.append(len(json.loads((out / "predictions.json").read_text())[0]["detections"]))
    assert counts[1] != counts[0]
