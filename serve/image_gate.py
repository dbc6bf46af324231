"""From the bytes of a stranger's image to the model's input. What is too large is refused by its header, before decoding.

A PNG of 20 KB can ask for hundreds of megabytes; Pillow itself only warns. No name, path or address that a client sends is
ever opened: the bytes are all there is.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

from PIL import Image, UnidentifiedImageError

from siamdetr.errors import ImageError
from siamdetr.images.preprocessing import PreprocessingSpec, Sample, load_image, resize, resized_size
from siamdetr.serve.refusals import Refused
from siamdetr.serve.settings import Limits

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


def prepare(data: bytes, spec: PreprocessingSpec, limits: Limits, *, name: str) -> Sample:
    """Decode and resize one image: first frame, upright, RGB.

    Args:
        data: the file.
        spec: how the model wants it.
        limits: of bytes, pixels and side.
        name: of the image in refusals.
    Returns:
        Resized [h, w, 3] uint8 and the original (H, W).
    Raises:
        Refused: 413 too large; 415 none of the formats; 422 empty, truncated or damaged.
    """
    if not data:
        raise Refused(422, f"{name}: empty, 0 bytes")
    if len(data) > limits.max_image_bytes:
        raise Refused(413, f"{name}: {len(data)} bytes, at most {limits.max_image_bytes} are taken")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that Pillow then reads well enough
        image = _guarded(lambda: Image.open(io.BytesIO(data), formats=FORMATS), name, limits.max_pixels)
        with image:
            _check_size(image.width, image.height, spec, limits, name)
            upright = _guarded(lambda: load_image(image), name, limits.max_pixels)
    return resize(upright, spec), (upright.height, upright.width)


def _check_size(width: int, height: int, spec: PreprocessingSpec, limits: Limits, name: str) -> None:
    if width < 1 or height < 1:
        raise Refused(422, f"{name}: {width} × {height} pixels, expected at least one")
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise Refused(
            413,
            f"{name}: {width} × {height} pixels, at most {limits.max_pixels} and {limits.max_side} a side are taken",
        )
    resized = resized_size((height, width), spec)
    if resized[0] * resized[1] > limits.max_pixels:
        raise Refused(
            413, f"{name}: {width} × {height} pixels: too elongated for this model, which resizes the short side"
        )


def _guarded(read: Callable[[], Image.Image], name: str, max_pixels: int) -> Image.Image:
    """Pillow's readers raise what they like on damaged files: OSError, SyntaxError, struct.error, ZeroDivisionError, …"""
    try:
        return read()
    except Image.DecompressionBombError:  # Pillow's own bound, from the header, before ours is asked
        raise Refused(413, f"{name}: far more pixels than the {max_pixels} that are taken") from None
    except UnidentifiedImageError:
        raise Refused(415, f"{name}: none of the formats {', '.join(FORMATS)}") from None
    except ImageError as error:
        raise Refused(422, f"{name}: {error}") from None
    except MemoryError:
        raise
    except Exception as error:
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise Refused(422, f"{name}: truncated or damaged ({cause})") from None
