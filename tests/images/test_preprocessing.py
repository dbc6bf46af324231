"""From a picture to the model's input."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from siamdetr.errors import ImageError
from siamdetr.export import infer
from siamdetr.images.preprocessing import PreprocessingSpec, batches, load_image, preprocess, resized_size


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("original", "expected"),
    [((480, 640), (800, 1066)), ((640, 480), (1066, 800)), ((400, 1000), (533, 1332)), ((2, 5000), (1, 2500))],
)
def test_the_shorter_side_is_800_unless_the_longer_one_would_pass_1333(
    original: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert resized_size(original, PreprocessingSpec()) == expected


def test_letterbox_keeps_the_shape_and_pads_right_and_below() -> None:
    spec = PreprocessingSpec(mode="letterbox", size=(64, 64))
    prepared = preprocess([picture(40, 80)], spec)
    assert prepared.images.shape == (1, 3, 64, 64)
    assert prepared.sizes.tolist() == [[32, 64]]
    assert prepared.padding is not None
    assert not prepared.padding[0, :32].any()
    assert prepared.padding[0, 32:].all()
    assert (prepared.images[0, :, 32:] == 0).all()


def test_fixed_gives_one_size_and_no_padding() -> None:
    prepared = preprocess([picture(40, 80), picture(90, 30)], PreprocessingSpec.from_size((48, 56)))
    assert prepared.images.shape == (2, 3, 48, 56)
    assert prepared.padding is None
    assert prepared.original_sizes.tolist() == [[40, 80], [90, 30]]


def test_images_of_different_sizes_are_padded_to_the_largest() -> None:
    prepared = preprocess([picture(40, 80), picture(80, 40)], PreprocessingSpec.from_size(32))
    assert prepared.sizes.tolist() == [[26, 52], [52, 26]]  # the longer side is bounded by 5/3 of 32
    assert prepared.images.shape == (2, 3, 52, 52)
    assert prepared.padding is not None
    assert prepared.padding[0].sum() == 26 * 52
    assert prepared.padding[1, :, 26:].all()


def test_file_array_and_pil_give_the_same_pixels(tmp_path: Path) -> None:
    pixels = picture(50, 70)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    images: list[Any] = [pixels, Image.fromarray(pixels), tmp_path / "a.png", str(tmp_path / "a.png")]
    prepared = preprocess(images, PreprocessingSpec.from_size(33))
    assert all((prepared.images[0] == other).all() for other in prepared.images[1:])


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    pixels = picture(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    turned = np.asarray(load_image(tmp_path / "turned.png"))
    assert (turned == np.rot90(pixels, -1)).all()
    assert preprocess([tmp_path / "turned.png"], PreprocessingSpec.from_size(20)).original_sizes.tolist() == [[30, 20]]


def test_every_kind_of_pixel_becomes_rgb(tmp_path: Path) -> None:
    grey = picture(8, 9)[..., 0]
    assert (np.asarray(load_image(grey))[..., 1] == grey).all()
    wide = grey.astype(np.uint16) * 257
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (np.asarray(load_image(tmp_path / "wide.png"))[..., 2] == grey).all()
    for mode in ("L", "LA", "RGBA", "P", "1", "CMYK"):
        assert load_image(Image.fromarray(picture(8, 9)).convert(mode)).mode == "RGB"
    palette = Image.fromarray(picture(8, 9)).convert("P")
    palette.info["transparency"] = b"\x00\x80"
    assert load_image(palette).mode == "RGB"


def test_sixteen_bits_are_scaled_without_a_wider_copy() -> None:
    """A PNG of 80 KB may hold 40 megapixels of them."""
    image = Image.fromarray(np.full((1000, 1000), 513, np.uint16))
    tracemalloc.start()
    try:
        assert load_image(image).getpixel((0, 0)) == (128, 128, 128)  # 10 bits
        assert tracemalloc.get_traced_memory()[1] < 8_000_000  # bytes: of one 64-bit copy
    finally:
        tracemalloc.stop()
    wide = Image.fromarray(np.array([[-5, 513, 70_000]], np.int32))
    assert np.asarray(load_image(wide))[0, :, 0].tolist() == [0, 2, 255]


def test_a_caller_s_image_is_not_changed() -> None:
    image = Image.fromarray(picture(8, 9)).convert("RGBA")
    load_image(image)
    assert image.mode == "RGBA"


def test_errors_say_what_is_wrong_with_an_image(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.fromarray(picture(64, 64)).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:-900])
    (tmp_path / "text.jpg").write_text("not a picture")
    cases: list[tuple[Any, str]] = [
        (tmp_path / "none.jpg", r"none.jpg: no such file"),
        (tmp_path, "a folder, expected an image"),
        (tmp_path / "text.jpg", "text.jpg: not an image, or none of the formats .*; convert it"),
        (tmp_path / "cut.jpg", r"cut.jpg: truncated or damaged \(.*\); fetch it again"),
        (np.zeros((3, 8, 9), dtype=np.uint8), r"array \[3, 8, 9\] of uint8, expected uint8 RGB \[H, W, 3\]"),
        (np.zeros((8, 9, 3), dtype=np.float32), r"of float32, expected uint8"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "not one finite pixel"),
        (7, "got int, expected a PIL image"),
    ]
    for image, text in cases:
        with pytest.raises(ImageError, match=text):
            load_image(image)
    with pytest.raises(ImageError, match="got no image at all"):
        preprocess([], PreprocessingSpec())


def test_a_spec_that_does_not_hold_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"mode 'fixed' takes size as \(height, width\), got 800"):
        PreprocessingSpec(mode="fixed")
    with pytest.raises(ValidationError, match="mode 'shortest-edge' takes size as one number"):
        PreprocessingSpec(size=(3, 4))
    with pytest.raises(ValidationError, match="size must be at least 1 pixel"):
        PreprocessingSpec(size=0)
    with pytest.raises(ValidationError, match="std must be above 0"):
        PreprocessingSpec(std=(0.0, 1.0, 1.0))


def test_a_spec_survives_json() -> None:
    for spec in (
        PreprocessingSpec(),
        PreprocessingSpec(mode="letterbox", size=(5, 6)),
        PreprocessingSpec.from_size(320),
    ):
        assert PreprocessingSpec.model_validate_json(spec.model_dump_json()) == spec


def test_batches_hold_one_size_and_every_image_once() -> None:
    shapes = [(40, 80), (80, 40), (40, 80), (60, 60), (40, 80), (80, 40), (30, 99)] * 3
    images = [picture(height, width, seed) for seed, (height, width) in enumerate(shapes)]
    spec = PreprocessingSpec.from_size(32)
    seen: list[int] = []
    for positions, prepared in batches(images, spec, 2):
        assert prepared.padding is None
        assert len(positions) == len(prepared) <= 2
        for row, position in enumerate(positions):
            assert (prepared.images[row] == preprocess([images[position]], spec).images[0]).all()
        seen += positions
    assert sorted(seen) == list(range(len(images)))
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        list(batches(images, spec, 0))


@pytest.mark.parametrize(
    "spec",
    [PreprocessingSpec(), PreprocessingSpec(size=320, max_size=None), PreprocessingSpec.from_size((123, 77))],
    ids=["detr", "unbounded", "fixed"],
)
def test_the_bundle_s_infer_py_prepares_bit_for_bit_the_same(spec: PreprocessingSpec, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(picture(61, 47)).save(tmp_path / "turned.jpg", exif=exif)
    grey = Image.fromarray((picture(30, 40)[..., 0].astype(np.uint16) << 8) + 77)
    palette = Image.fromarray(picture(33, 44)).convert("P")
    palette.info["transparency"] = b"\x00\x80"
    images: list[Any] = [tmp_path / "turned.jpg", grey, palette, picture(480, 640), picture(37, 911), picture(5, 3)]
    for image in images:
        ours = preprocess([image], spec).images[0]
        theirs = infer.resize(infer.load_image(image), spec.model_dump(mode="json")).transpose(2, 0, 1)
        assert (ours == theirs).all()
