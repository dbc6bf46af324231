"""Tiles find objects that are too small in the whole image; video frames keep their times.

A broken video keeps what was read.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from helpers.tiny_models import tiny_model
from PIL import Image

from siamdetr.errors import VideoError
from siamdetr.images.preprocessing import Prepared, PreprocessingSpec
from siamdetr.inference.predictor import ScoredBoxes
from siamdetr.inference.tiles import Tiling, predict_tiled
from siamdetr.inference.video import VideoReader, VideoWriter
from siamdetr.inference.video_sources import is_video, source_of


class RedFinder:
    """Boxes the red pixels of an image, if they cover enough of the model's input."""

    class_names = ("red",)
    threshold = 0.5
    preprocessing = PreprocessingSpec.from_size((64, 64))

    def predict_batch(self, batch: Prepared) -> ScoredBoxes:
        boxes = np.zeros((len(batch), 1, 4), dtype=np.float32)
        scores = np.zeros((len(batch), 1), dtype=np.float32)
        for row, pixels in enumerate(batch.images):
            red = (pixels[0] > 200) & (pixels[1] < 60)
            if red.sum() >= 16:
                ys, xs = np.nonzero(red)
                height, width = batch.original_sizes[row]
                scale = np.array([width / 64, height / 64] * 2)
                boxes[row, 0] = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) * scale
                scores[row] = 0.9
        return ScoredBoxes(scores, np.zeros((len(batch), 1), dtype=np.int64), boxes)


def scene(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (640, 480)) -> Image.Image:
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[y0:y1, x0:x1] = (255, 0, 0)
    return Image.fromarray(pixels)


def test_a_small_object_is_found_in_a_tile_and_lies_where_it_is() -> None:
    image = scene((500, 300, 516, 316))
    assert len(predict_tiled(RedFinder(), image, Tiling(size=1000))) == 0  # too small in the whole
    found = predict_tiled(RedFinder(), image, Tiling(size=128, overlap=0.25))
    assert len(found) == 1
    assert found.xyxy[0] == pytest.approx([500, 300, 516, 316], abs=2)


def test_an_object_larger_than_a_tile_is_found_whole() -> None:
    found = predict_tiled(RedFinder(), scene((100, 80, 500, 400)), Tiling(size=96, overlap=0.0))
    assert [100, 80, 500, 400] in found.xyxy.round(-1).astype(int).tolist()


@pytest.mark.parametrize(("width", "height"), [(640, 480), (129, 128), (128, 128), (50, 700), (1, 1)])
def test_tiles_cover_every_pixel_and_stay_inside(width: int, height: int) -> None:
    covered = np.zeros((height, width), dtype=bool)
    for x0, y0, x1, y1 in Tiling(size=128, overlap=0.3).tiles(width, height):
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        covered[y0:y1, x0:x1] = True
    assert covered.all()


def test_tiles_larger_than_the_picture_change_nothing() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    model = tiny_model()
    tiled, whole = predict_tiled(model, image, Tiling(size=640), threshold=0.2), model.predict(image, threshold=0.2)
    assert not isinstance(whole, list)
    assert np.array_equal(tiled.xyxy, whole.xyxy)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 10}, "--tile: got 10 pixels"),
        ({"overlap": 1.0}, "--overlap: got 1.0, expected a share from 0 to below 1"),
        ({"merge_iou": 0.0}, "merge_iou is 0.0"),
    ],
)
def test_impossible_tiles_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tiling(**values)  # type: ignore[arg-type]


def write_video(path: Path, times: list[float]) -> Path:
    writer = VideoWriter(path, rate=10)
    for n, seconds in enumerate(times):
        writer.write(np.full((49, 65, 3), 20 * n, dtype=np.uint8), seconds)
    writer.close()
    return path


def test_frames_come_back_in_order_with_their_own_times(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.2, 0.5, 0.6, 1.4]  # a variable frame rate
    with VideoReader(str(write_video(tmp_path / "a.mp4", times))) as reader:
        frames = list(reader)
    assert [frame.number for frame in frames] == list(range(6))
    assert [frame.seconds for frame in frames] == pytest.approx(times, abs=1e-3)
    assert frames[0].pixels.shape == (48, 64, 3)
    assert [int(frame.pixels.mean()) for frame in frames] == pytest.approx([0, 20, 40, 60, 80, 100], abs=4)
    assert reader.broken is None


def test_a_stride_leaves_frames_out_and_keeps_their_numbers(tmp_path: Path) -> None:
    with VideoReader(str(write_video(tmp_path / "a.mp4", [n / 10 for n in range(7)])), stride=3) as reader:
        assert [frame.number for frame in reader] == [0, 3, 6]
    with pytest.raises(ValueError, match="--stride: got 0, expected 1 or more"):
        VideoReader("a.mp4", stride=0)


def test_a_video_that_breaks_off_gives_the_frames_before(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        random = np.random.default_rng(0)
        for _ in range(40):
            pixels = random.integers(0, 256, (240, 320, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with VideoReader(str(path)) as reader:
        assert 5 < len(list(reader)) < 40


def test_what_is_no_video_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"a\.mp4: cannot be opened .*; is it there, and a video\?"):
        VideoReader(str(tmp_path / "a.mp4"))
    with pytest.raises(VideoError, match=r"camera 77: cannot be opened .*; is it plugged in, and free\?"):
        VideoReader("77")


def test_what_a_video_is() -> None:
    assert all(is_video(source) for source in ("0", "rtsp://camera/1", "a/b.MP4", "https://host/live.m3u8"))
    assert is_video(source_of(Path("rtsp://camera:554/1")))
    assert source_of(Path("rtsp://camera:554/1")) == "rtsp://camera:554/1"
    assert source_of(Path("clips/a.mp4")) == str(Path("clips/a.mp4"))
    assert not any(is_video(source) for source in ("a.jpg", "folder", "model.onnx"))
