"""Finetuning augmentation: sizes, boxes that follow their pixels, and images that cannot be opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.data_sets import write_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from siamdetr.data.transforms import FinetuneTransform
from siamdetr.errors import UnreadableImageError
from siamdetr.images.open import ImageLimits, content_key, open_untrusted
from siamdetr.images.preprocessing import PreprocessingSpec, resize
from siamdetr.images.randomness import sample_random

RED = (255, 0, 0)


def red_box_image(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGB", (width, height), (0, 0, 255))
    image.paste(RED, box)
    return image


def red_extent(pixels: np.ndarray) -> tuple[float, float, float, float] | None:
    rows, columns = np.nonzero(pixels[..., 0] > 127)
    return None if len(rows) == 0 else (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    width=st.integers(60, 300),
    height=st.integers(60, 300),
    fixed=st.booleans(),
    augment=st.sampled_from(["none", "flip", "detr"]),
)
def test_a_box_stays_around_its_object(seed: int, width: int, height: int, fixed: bool, augment: str) -> None:
    rng = np.random.default_rng(seed)
    x0, y0 = int(rng.integers(width - 30)), int(rng.integers(height - 30))
    box = (x0, y0, x0 + int(rng.integers(20, width - x0 + 1)), y0 + int(rng.integers(20, height - y0 + 1)))
    spec = PreprocessingSpec.from_size((100, 140) if fixed else 120)
    transform = FinetuneTransform(spec, augment)  # type: ignore[arg-type]
    sample = transform(red_box_image(width, height, box), np.asarray([box], np.float32), np.asarray([7], np.int32), rng)
    height, width = sample.pixels.shape[:2]
    assert sample.pixels.dtype == np.uint8
    assert sample.boxes.dtype == np.float32
    assert (sample.boxes >= 0).all()
    assert (sample.boxes <= [width, height, width, height]).all()
    extent = red_extent(sample.pixels)
    if len(sample.boxes) == 0:
        assert extent is None or min(extent[2] - extent[0], extent[3] - extent[1]) <= 2
    else:
        assert sample.labels.tolist() == [7]
        if extent is not None:
            assert sample.boxes[0] == pytest.approx(extent, abs=2.5)
        else:
            assert (sample.boxes[0, 2:] - sample.boxes[0, :2]).min() <= 2


def test_sizes_are_those_of_detr_in_proportion() -> None:
    image = Image.new("RGB", (320, 240))
    transform = FinetuneTransform(PreprocessingSpec.from_size(800))
    sides = []
    for i in range(60):
        pixels = transform(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int32), sample_random(0, 0, i)).pixels
        sides.append(pixels.shape[:2])
    assert {min(side) for side in sides} <= set(range(480, 801, 32))
    assert len({min(side) for side in sides}) == 11
    assert max(max(side) for side in sides) <= 1333
    small = FinetuneTransform(PreprocessingSpec.from_size(128))
    shapes = [small(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int32), sample_random(0, 0, i)).pixels.shape for i in range(100)]  # fmt: skip
    assert min(min(shape[:2]) for shape in shapes) == 77
    assert max(min(shape[:2]) for shape in shapes) == 128


def test_half_of_the_images_are_flipped_and_half_are_cropped() -> None:
    image = red_box_image(100, 100, (0, 0, 50, 100))
    box, label = np.asarray([[0, 0, 50, 100]], np.float32), np.asarray([0], np.int32)
    flip = FinetuneTransform(PreprocessingSpec.from_size(64), "flip")
    flipped = sum(bool(flip(image, box, label, sample_random(0, 0, i)).boxes[0, 0] > 1) for i in range(400))
    assert 160 < flipped < 240


def test_without_augmentation_pixels_equal_the_evaluations(real_data: Path) -> None:
    image = open_untrusted(real_data / "bccd" / "JPEGImages" / "BloodImage_00000.jpg")
    for spec in (PreprocessingSpec.from_size(200), PreprocessingSpec.from_size((96, 128))):
        sample = FinetuneTransform(spec, "none")(
            image, np.zeros((0, 4), np.float32), np.zeros(0, np.int32), sample_random(0, 0, 0)
        )
        assert np.array_equal(sample.pixels, resize(image, spec))


def test_letterboxing_is_refused() -> None:
    with pytest.raises(ValueError, match="got mode 'letterbox', expected 'shortest-edge' or 'fixed'"):
        FinetuneTransform(PreprocessingSpec(mode="letterbox", size=(64, 64)))


def test_images_are_opened_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    path = write_image(tmp_path / "turned.jpg", size=(60, 40), exif=exif)
    assert open_untrusted(path).size == (40, 60)


def test_a_large_jpeg_may_be_decoded_smaller(tmp_path: Path) -> None:
    path = write_image(tmp_path / "large.jpg", size=(1600, 1200))
    assert open_untrusted(path, at_least=200).size == (400, 300)
    assert open_untrusted(path, at_least=700).size == (1600, 1200)
    assert open_untrusted(path).size == (1600, 1200)


def test_unreadable_images_are_named_with_the_cause(tmp_path: Path) -> None:
    whole = write_image(tmp_path / "whole.jpg", size=(200, 200)).read_bytes()
    contents = {"text.jpg": b"no image", "empty.jpg": b"", "cut.jpg": whole[: len(whole) // 2]}
    causes = {"text.jpg": "not an image", "empty.jpg": "empty, 0 bytes", "cut.jpg": r"truncated or damaged \("}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableImageError, match=rf"{name}: {causes[name]}"):
            open_untrusted(tmp_path / name)
    with pytest.raises(UnreadableImageError, match=r"gone\.jpg: no such file"):
        open_untrusted(tmp_path / "gone.jpg")


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = write_image(tmp_path / "huge.png", size=(60, 40))
    with pytest.raises(
        UnreadableImageError, match=r"huge\.png: 60 × 40 pixels, at most 2000 are taken; tile it or make it"
    ):
        open_untrusted(path, ImageLimits(pixels=2000))


def test_the_key_is_of_the_content() -> None:
    assert content_key(b"a") == content_key(b"a") != content_key(b"b")
    assert len(content_key(b"")) == 16
