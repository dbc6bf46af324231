"""The part of an image around some boxes, enlarged, and an attention map over the same part."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from PIL import Image

from siamdetr.drawing.attention import full_scale
from siamdetr.inference.attention_maps import Floats

Corners = tuple[float, float, float, float]
_SIDE = 320  # pixels of a picture
_MARGIN = 0.6  # of the boxes' longer side, on each side of them
_LEAST_MARGIN = 24  # pixels of the image
_DIM = 0.45  # how bright the image stays under an attention map


@dataclass(frozen=True)
class Crop:
    """A part of an image.

    Attributes:
        picture: the part, about 320 pixels a side.
        window: (x0, y0, x1, y1) of the part, pixels of the image.
        scale: pixels of the picture per pixel of the image.
        size: (width, height) of the whole image, pixels.
    """

    picture: Image.Image
    window: Corners
    scale: float
    size: tuple[int, int]

    def place(self, box: Corners) -> Corners:
        """A box of the image in pixels of the picture."""
        left, top = self.window[:2]
        x0, y0, x1, y1 = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
        scaled = x0 * self.scale, y0 * self.scale, x1 * self.scale, y1 * self.scale
        return scaled[0], scaled[1], max(scaled[0], scaled[2]), max(scaled[1], scaled[3])


def crop_around(image: Image.Image, boxes: Sequence[Corners]) -> Crop:
    """The part of an image around some boxes."""
    window = _window(boxes, image.size)
    scale = _SIDE / max(window[2] - window[0], window[3] - window[1])
    size = (max(1, round((window[2] - window[0]) * scale)), max(1, round((window[3] - window[1]) * scale)))
    return Crop(image.resize(size, Image.Resampling.BICUBIC, box=window), window, scale, image.size)


def with_heat(crop: Crop, values: Floats) -> Image.Image:
    """The darkened part under an attention map [h, w] of the whole image."""
    height, width = values.shape
    x, y = width / crop.size[0], height / crop.size[1]
    left, top, right, bottom = crop.window
    part = (left * x, top * y, min(right * x, float(width)), min(bottom * y, float(height)))
    scaled = Image.fromarray(values / full_scale(values)).resize(crop.picture.size, Image.Resampling.BICUBIC, box=part)
    heat = np.asarray(scaled).clip(0, 1)
    alpha = np.sqrt(heat)[..., None] * 0.85
    mixed = (
        np.asarray(crop.picture.convert("RGB")) * _DIM * (1 - alpha) + colormaps["inferno"](heat)[..., :3] * 255 * alpha
    )
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def jpeg(picture: Image.Image) -> bytes:
    """The bytes of a picture as a JPEG."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()


def _window(boxes: Sequence[Corners], size: tuple[int, int]) -> Corners:
    x0, y0 = min(box[0] for box in boxes), min(box[1] for box in boxes)
    x1, y1 = max(box[2] for box in boxes), max(box[3] for box in boxes)
    margin = max(_LEAST_MARGIN, _MARGIN * max(x1 - x0, y1 - y0))
    width, height = size
    left, top = min(max(0.0, x0 - margin), width - 1.0), min(max(0.0, y0 - margin), height - 1.0)
    return left, top, max(left + 1, min(float(width), x1 + margin)), max(top + 1, min(float(height), y1 + margin))
