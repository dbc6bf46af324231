"""From pixels of any kind to upright 8-bit RGB.

Deeper pixels are scaled by the file's own depth or range.

Cameras of 10, 12 or 14 bits write their values into 16-bit files. Keeping the upper 8 of those 16 bits would leave 4,
15 or 60 grey levels. So the depth is the smallest of 8, 10, 12, 14 and 16 bits that holds the file's values (a TIFF may
declare more), and the upper 8 bits of that depth are kept. Floating-point and signed pixels have a range instead.

`export/infer.py` and `export/client.py` repeat these functions, because they stand alone; a test holds the three equal.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

DEPTH_KEY = "depth"  # in `Image.info` of an image of more than 8 bits a channel: how it was scaled, in words


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright 8-bit RGB image.

    Transparency is dropped, deeper pixels are scaled by the file's own depth or range.

    Raises:
        ValueError: floating-point pixels without a finite one.
    """
    declared, low = declared_bits(image), low_bytes(image)
    image.load()
    image = upright(image)
    if low is not None:
        image = join_bytes(image, upright(low))
    elif image.mode == "F" or image.mode.startswith("I"):
        image = grey_to_8_bits(image, declared)
    if image.mode == "RGB":
        return image
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of EXIF that it then reads well enough
            return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block must not cost the image: Pillow raises what it likes here
        return image


def declared_bits(image: Image.Image) -> int:
    """Bits per channel that a TIFF declares; 0: it declares none.

    BitsPerSample below 16, else MaxSampleValue.
    """
    tags = getattr(image, "tag_v2", {})
    bits, largest = (np.atleast_1d(tags.get(tag, 0)).max() for tag in (258, 281))
    return int(bits) if 8 < bits < 16 else int(largest).bit_length()


def fitting_bits(largest: int, declared: int = 0) -> int:
    """The smallest depth that holds `largest` and is not below `declared`: 8, 10, 12, 14, 16 or more bits."""
    bits = max(8, largest.bit_length(), min(declared, 16))
    return bits + bits % 2


def grey_to_8_bits(image: Image.Image, declared: int) -> Image.Image:
    """Integer or floating-point grey as 8-bit grey; `image.info` says how it was scaled."""
    values = np.asarray(image)
    if values.dtype.kind != "f" and (values.dtype.kind == "u" or values.min() >= 0):
        bits = fitting_bits(int(values.max()), declared)
        grey = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
        grey.info["depth"] = f"values of {bits} bits, divided by {2 ** (bits - 8)}"
        return grey
    reals = values.astype(np.float64)
    finite = np.isfinite(reals)
    if not finite.any():
        raise ValueError("not one finite pixel")
    low, high = float(reals.min(where=finite, initial=np.inf)), float(reals.max(where=finite, initial=-np.inf))
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scale = 255 / (high - low) if high > low else 0.0
    reals = np.where(finite, (reals - low) * scale, 0.0)
    grey = Image.fromarray(np.rint(reals).astype(np.uint8))
    grey.info["depth"] = f"values of {low:g} to {high:g}, scaled to 0..255"
    return grey


def low_bytes(image: Image.Image) -> Image.Image | None:
    """The lower bytes of a 16-bit colour file that is not decoded yet; None: it is no such file.

    Pillow decodes 16-bit colours to their upper bytes; with the byte order exchanged it decodes the lower ones.
    """
    swapped = {"16B": "16L", "16L": "16B", "16N": "16B" if np.little_endian else "16L"}
    if not isinstance(image, ImageFile.ImageFile) or image.fp is None or not image.tile:
        return None
    arguments = image.tile[0][3]
    raw = str(arguments[0] if isinstance(arguments, tuple) else arguments)  # such as "RGB;16B"
    if image.mode not in ("RGB", "RGBA", "RGBX") or raw[-3:] not in swapped:
        return None
    position = image.fp.tell()
    image.fp.seek(0)
    again = Image.open(io.BytesIO(image.fp.read()), formats=[str(image.format)])
    image.fp.seek(position)
    assert isinstance(again, ImageFile.ImageFile)
    mode = raw[:-3] + swapped[raw[-3:]]
    tiles: list[Any] = [
        getattr(type(tile), "_make", tuple)((*tile[:3], (mode, *tile[3][1:]) if isinstance(tile[3], tuple) else mode))
        for tile in again.tile  # before Pillow 11 a tile is a plain tuple
    ]
    again.tile = tiles
    again.load()
    return again


def join_bytes(high: Image.Image, low: Image.Image) -> Image.Image:
    """RGB of 8 bits a channel of a 16-bit colour image, from the upper and the lower byte of each channel."""
    upper = np.asarray(high)[..., :3]
    bits = fitting_bits(int(upper.max()) << 8)
    joined = high
    if bits < 16:
        joined = Image.fromarray((upper << (16 - bits)) | (np.asarray(low)[..., :3] >> (bits - 8)))
    joined.info["depth"] = f"values of {bits} bits, divided by {2 ** (bits - 8)}"
    return joined
