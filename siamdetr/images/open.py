"""Opening the image files of a data set: upright RGB as in prediction, and a clear word when it does not work."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from siamdetr.errors import UnreadableImageError
from siamdetr.images.preprocessing import load_image

KEY_BYTES = 16
MAX_PIXELS = 178_956_970  # Pillow's own limit for an error: beyond it a small file may ask for gigabytes


def read_image(path: str | Path, *, at_least: int | None = None) -> Image.Image:
    """Opens an image: first frame, EXIF rotation applied, RGB.

    Args:
        path: of the file.
        at_least: see `decode_image`.
    Raises:
        UnreadableImageError: no such file, not an image, broken off, or above 179 million pixels.
    """
    return decode_image(read_bytes(path), source=path, at_least=at_least)


def read_bytes(path: str | Path) -> bytes:
    """The content of a file.

    Raises:
        UnreadableImageError: there is no such file, or it may not be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImageError(
            f"{path}: cannot be read ({error.strerror or error}); `siamdetr doctor` lists such images"
        ) from None


def decode_image(data: bytes, *, source: str | Path, at_least: int | None = None) -> Image.Image:
    """Decodes an image: first frame, EXIF rotation applied, RGB.

    Args:
        data: content of the file.
        source: named in errors.
        at_least: pixels. A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (several times faster) as long as no
            side gets shorter than this. None: full size.
    Raises:
        UnreadableImageError: not an image, broken off, or above 179 million pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise UnreadableImageError(
                        f"{source}: {width} x {height} pixels, expected at most {MAX_PIXELS}; tile it or make it smaller"
                    )
                if at_least is not None and min(width, height) >= 2 * at_least:
                    image.draft("RGB", (at_least, at_least))
                return load_image(image)
    except UnreadableImageError:
        raise
    except (
        Exception
    ) as error:  # Pillow's readers raise what they like on broken files: OSError, SyntaxError, struct.error ...
        cause = "empty file" if not data else " ".join(str(error).split()) or type(error).__name__
        cause = "no image reader knows it" if isinstance(error, UnidentifiedImageError) and data else cause
        raise UnreadableImageError(
            f"{source}: cannot be opened as an image ({cause}); `siamdetr doctor` lists such images"
        ) from None


def content_key(data: bytes) -> bytes:
    """16 bytes that name a file by its content: the beginning of its SHA-256."""
    return hashlib.sha256(data).digest()[:KEY_BYTES]
