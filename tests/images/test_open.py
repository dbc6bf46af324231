"""Opening files: one set of limits, one list of suffixes, and deep pixels keep their grey levels."""

from __future__ import annotations

import inspect
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from siamdetr.errors import DataError, ImageError, UnreadableImageError
from siamdetr.export import client, infer
from siamdetr.images import depth
from siamdetr.images.check import check_image
from siamdetr.images.header import ENDINGS, is_image
from siamdetr.images.open import UPLOAD_LIMITS, ImageLimits, open_untrusted
from siamdetr.images.preprocessing import load_image

GREY = np.arange(256, dtype=np.uint16).reshape(16, 16)


def tiff(values: NDArray[Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "TIFF", **options)
    return stream.getvalue()


def colours(bits: int, channels: int = 3) -> NDArray[np.uint16]:
    """[20, 30, channels] pixels with every value of the bit depth; alpha, if any, is opaque."""
    values = np.random.default_rng(0).integers(0, 2**bits, (20, 30, channels)).astype(np.uint16)
    values[0, 0] = 2**bits - 1
    if channels == 4:
        values[..., 3] = 65535
    return values


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_grey_values_keep_their_256_levels_whatever_the_depth(bits: int) -> None:
    for data in (tiff(GREY << (bits - 8)), tiff((GREY << (bits - 8)).astype(np.int32))):
        image = open_untrusted(data)
        assert (np.asarray(image)[..., 0] == GREY).all()
        assert image.info["depth"] == f"values of {bits} bits, divided by {2 ** (bits - 8)}"


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("ending", [".png", ".tiff"])
def test_colours_of_16_bit_files_keep_their_levels_too(bits: int, channels: int, ending: str) -> None:
    values = colours(bits, channels)
    written, data = cv2.imencode(ending, values[..., [2, 1, 0, 3][:channels]])
    assert written
    assert (np.asarray(open_untrusted(data.tobytes())) == values[..., :3] >> (bits - 8)).all()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 255]), (0, 0.5, [0, 128]), (280.5, 310.25, [0, 255]), (-40, 2, [0, 255]), (0, 1e-3, [0, 0])],
)
def test_floating_point_pixels_are_scaled_by_their_range(low: float, high: float, expected: list[int]) -> None:
    values = np.linspace(low, high, 64, dtype=np.float32).reshape(8, 8)
    pixels = np.asarray(open_untrusted(tiff(values)))[..., 0]
    assert [pixels[0, 0], pixels[-1, -1]] == expected
    values[3, 3] = np.nan  # a dead pixel costs nothing but itself
    assert np.asarray(open_untrusted(tiff(values)))[3, 3].tolist() == [0, 0, 0]


def test_a_declared_depth_holds_for_dark_images() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[281] = 4095  # MaxSampleValue
    dark = np.full((4, 4), 160, np.uint16)
    assert open_untrusted(tiff(dark, tiffinfo=tags)).getpixel((0, 0)) == (10, 10, 10)
    assert open_untrusted(tiff(dark)).getpixel((0, 0)) == (160, 160, 160)


def test_the_doctor_says_how_training_scales(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(GREY << 4))
    assert check_image(tmp_path / "a.tif").findings == (("deep-image", "values of 12 bits, divided by 16"),)
    (tmp_path / "b.tif").write_bytes(tiff(np.full((4, 4), np.nan, np.float32)))
    assert check_image(tmp_path / "b.tif").findings == (("truncated-image", "not one finite pixel"),)
    with pytest.raises(UnreadableImageError, match="not one finite pixel"):
        open_untrusted(tmp_path / "b.tif")


def test_files_that_stand_alone_hold_the_same_functions() -> None:
    names = ("to_rgb", "upright", "declared_bits", "fitting_bits", "grey_to_8_bits", "low_bytes", "join_bytes")
    for name in names:
        source = inspect.getsource(getattr(depth, name))
        for module in (infer, client):
            assert inspect.getsource(getattr(module, name)) == source, f"{module.__name__}.{name} differs"


def test_package_and_infer_read_deep_files_alike(tmp_path: Path) -> None:
    values = np.linspace(280, 310, 256, dtype=np.float32).reshape(16, 16)
    (tmp_path / "float.tif").write_bytes(tiff(values))
    cv2.imwrite(str(tmp_path / "colour.png"), colours(12))
    for path in tmp_path.iterdir():
        for other in (infer, client):
            assert (np.asarray(other.load_image(path)) == np.asarray(load_image(path))).all()
            assert (np.asarray(other.load_image(path.read_bytes())) == np.asarray(load_image(path))).all()


def test_infer_reads_pictures_whose_tiles_are_plain_tuples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of Pillow before 11 are: `infer.py` runs with the Pillow that the machine has."""
    cv2.imwrite(str(tmp_path / "deep.png"), colours(12))
    Image.new("RGB", (8, 8), "red").save(tmp_path / "plain.png")
    expected = {path: np.asarray(load_image(path)) for path in tmp_path.iterdir()}
    real = Image.open

    def opened(*arguments: Any, **options: Any) -> Any:
        image: Any = real(*arguments, **options)
        image.tile = [tuple(tile) for tile in image.tile]
        return image

    monkeypatch.setattr(Image, "open", opened)
    for path, pixels in expected.items():
        for other in (infer, client):
            assert (np.asarray(other.load_image(path)) == pixels).all()


def test_the_endings_are_those_of_the_formats_that_are_decoded() -> None:
    Image.init()
    registered = {ending for ending, name in Image.registered_extensions().items() if name in ENDINGS}
    assert registered <= {ending for endings in ENDINGS.values() for ending in endings}
    for name in ("a.jfif", "b.JPE", "c.avif", "d.JPG", "e.webp"):
        assert is_image(name)
    for name in ("a.heic", "._a.jpg", "a.txt", "jpg"):
        assert not is_image(name)


@pytest.mark.parametrize(("name", "options"), [("JPEG", {}), ("AVIF", {}), ("PNG", {}), ("TIFF", {}), ("TGA", {})])
def test_paths_bytes_and_file_objects_are_opened_alike(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / f"a{ENDINGS[name][0]}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path, name, **options)
    data = path.read_bytes()
    expected = np.asarray(open_untrusted(path))
    for source in (str(path), data, bytearray(data), io.BytesIO(data)):
        assert (np.asarray(load_image(source)) == expected).all()


def test_an_unreadable_image_says_why_in_a_word(tmp_path: Path) -> None:
    data = tiff(GREY)
    cases: list[tuple[Any, ImageLimits, str]] = [
        (tmp_path / "none.jpg", UPLOAD_LIMITS, "missing"),
        (tmp_path, UPLOAD_LIMITS, "missing"),
        (b"", UPLOAD_LIMITS, "empty"),
        (data, UPLOAD_LIMITS, "unknown format"),
        (data, ImageLimits(pixels=255), "too large"),
        (data, ImageLimits(side=15), "too large"),
        (data, ImageLimits(file_bytes=10), "too large"),
        (data[:-300], ImageLimits(), "damaged"),
    ]
    for source, limits, reason in cases:
        with pytest.raises(UnreadableImageError) as caught:
            open_untrusted(source, limits)
        assert caught.value.reason == reason, str(caught.value)
        assert isinstance(caught.value, ImageError)
        assert isinstance(caught.value, DataError)
