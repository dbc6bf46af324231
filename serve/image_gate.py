"""Prepare an untrusted image, given as bytes, for the model.

An image that is too large is refused by its header, before decoding. No name, path or address from a client is ever
opened.
"""

from __future__ import annotations

from siamdetr.errors import UnreadableImageError
from siamdetr.images.open import UPLOAD_LIMITS, open_header, open_untrusted
from siamdetr.images.preprocessing import PreprocessingSpec, Sample, resize, resized_size
from siamdetr.serve.refusals import Refused
from siamdetr.serve.settings import Limits

FORMATS = UPLOAD_LIMITS.formats
_STATUS = {"too large": 413, "unknown format": 415}  # every other reason: 422


def prepare(data: bytes, spec: PreprocessingSpec, limits: Limits, *, name: str) -> Sample:
    """Decode and resize one image: first frame, upright, RGB.

    Args:
        data: the file.
        spec: the model's preprocessing.
        limits: of bytes, pixels and side.
        name: of the image in refusals.
    Returns:
        Resized [h, w, 3] uint8 and the original (H, W).
    Raises:
        Refused: 413 too large; 415 none of the formats; 422 empty, truncated or damaged.
    """
    try:
        with open_header(data, limits.of_image, name=name) as header:
            _check_resized(header.width, header.height, spec, limits, name)
        upright = open_untrusted(data, limits.of_image, name=name)
    except UnreadableImageError as error:
        raise Refused(_STATUS.get(error.reason, 422), str(error)) from None
    return resize(upright, spec), (upright.height, upright.width)


def _check_resized(width: int, height: int, spec: PreprocessingSpec, limits: Limits, name: str) -> None:
    resized = resized_size((height, width), spec)
    if resized[0] * resized[1] > limits.max_pixels:
        raise Refused(
            413, f"{name}: {width} × {height} pixels: too elongated for this model, which resizes the short side"
        )
