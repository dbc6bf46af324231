"""The one place where an image file is opened.

Its limits are checked by the header, before a pixel is decoded.

Training, the doctor, predict, the server and the demo open files here, so that each refuses, scales and turns the same
way. A PNG of 20 KB can ask for hundreds of megabytes; Pillow itself only warns.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from PIL import Image, UnidentifiedImageError

from siamdetr.errors import UnreadableImageError
from siamdetr.images.depth import to_rgb
from siamdetr.images.header import FORMATS

KEY_BYTES = 16

Untrusted: TypeAlias = "bytes | bytearray | memoryview | BinaryIO | str | os.PathLike[str]"


@dataclass(frozen=True)
class ImageLimits:
    """Bounds on one image file, all of them checked before its pixels are decoded.

    Args:
        pixels: width times height. The default is Pillow's own limit.
        side: longer side, pixels.
        file_bytes: length of the file.
        formats: Pillow's names of the formats that are decoded.
    """

    pixels: int = 178_956_970
    side: int = 178_956_970
    file_bytes: int = 2**40
    formats: tuple[str, ...] = FORMATS


LIMITS = ImageLimits()  # of files that the user names: training, doctor, evaluation, predict
UPLOAD_LIMITS = ImageLimits(  # of files that come over a network: server, demo
    pixels=40_000_000, side=16_384, file_bytes=10 * 2**20, formats=("JPEG", "PNG", "WEBP", "BMP")
)


def open_untrusted(
    source: Untrusted, limits: ImageLimits = LIMITS, *, name: str | Path | None = None, at_least: int | None = None
) -> Image.Image:
    """An upright 8-bit RGB image.

    Of an animation the first frame, deeper pixels scaled (`siamdetr.images.depth`).

    Args:
        source: content of a file, a file object, or a path.
        limits: what is refused by the header.
        name: of the image in errors; None: the path, or "image".
        at_least: pixels. A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (several times faster) as long as no side
            gets shorter than this. None: full size.
    Raises:
        UnreadableImageError: no such file, empty, beyond the limits, of another format, truncated or damaged. `reason`
            says which.
    """
    text = str(name or (source if isinstance(source, str | os.PathLike) else "image"))
    with open_header(source, limits, name=text) as image:
        if at_least is not None and min(image.size) >= 2 * at_least:
            image.draft("RGB", (at_least, at_least))
        return _guarded(lambda: to_rgb(image), text, limits)


@contextmanager
def open_header(source: Untrusted, limits: ImageLimits = LIMITS, *, name: str) -> Iterator[Image.Image]:
    """The image with its size, mode and format, not decoded yet.

    Arguments and errors as of `open_untrusted`.
    """
    data = read_bytes(source, name=name)
    if not data:
        raise UnreadableImageError(f"{name}: empty, 0 bytes", "empty")
    if len(data) > limits.file_bytes:
        raise UnreadableImageError(f"{name}: {len(data)} bytes, at most {limits.file_bytes} are taken", "too large")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that Pillow then reads well enough, or that are refused below
        with _guarded(lambda: Image.open(io.BytesIO(data), formats=limits.formats), name, limits) as image:
            _check_size(image.width, image.height, name, limits)
            yield image


def read_bytes(source: Untrusted, *, name: str | None = None) -> bytes:
    """The content of a file.

    Raises:
        UnreadableImageError: there is no such file, or it may not be read.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    try:
        return Path(source).read_bytes() if isinstance(source, str | os.PathLike) else source.read()
    except FileNotFoundError:
        raise UnreadableImageError(f"{name or source}: no such file", "missing") from None
    except IsADirectoryError:
        raise UnreadableImageError(
            f"{name or source}: a folder, expected an image; give the files in it", "missing"
        ) from None
    except (OSError, ValueError) as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or error
        raise UnreadableImageError(f"{name or source}: cannot be read ({cause})", "missing") from None


def content_key(data: bytes) -> bytes:
    """16 bytes that name a file by its content: the beginning of its SHA-256."""
    return hashlib.sha256(data).digest()[:KEY_BYTES]


def _check_size(width: int, height: int, name: str, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise UnreadableImageError(f"{name}: {width} × {height} pixels, expected at least one", "damaged")
    if width * height > limits.pixels or max(width, height) > limits.side:
        side = f" and {limits.side} a side" if limits.side < limits.pixels else ""
        raise UnreadableImageError(
            f"{name}: {width} × {height} pixels, at most {limits.pixels}{side} are taken; tile it or make it smaller",
            "too large",
        )


def _guarded(read: Callable[[], Image.Image], name: str, limits: ImageLimits) -> Image.Image:
    """Turn any error of Pillow's readers into an `UnreadableImageError`.

    Damaged files raise OSError, SyntaxError, struct.error, ZeroDivisionError and others.
    """
    try:
        return read()
    except Image.DecompressionBombError:  # Pillow's own bound, from the header, before ours is asked
        raise UnreadableImageError(
            f"{name}: far more pixels than the {limits.pixels} that are taken; tile it or make it smaller", "too large"
        ) from None
    except UnidentifiedImageError:
        known = ", ".join(limits.formats) if limits.formats != FORMATS else "that are decoded"
        raise UnreadableImageError(
            f"{name}: not an image, or none of the formats {known}; convert it to JPEG or PNG", "unknown format"
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableImageError(
            f"{name}: truncated or damaged ({cause}); fetch it again or leave it out", "damaged"
        ) from None
