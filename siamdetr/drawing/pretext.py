"""Pictures of pretraining: views, regions, and the predictions matched to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from siamdetr.drawing.boxes import PALETTE, dashed_rectangle

Pixels = NDArray[np.uint8]  # [H, W, 3] RGB
Boxes = NDArray[np.float32]  # [n, 4] (cx, cy, w, h) fractions of the image
Point = tuple[float, float]
Rect = tuple[float, float, float, float]  # (x0, y0, x1, y1) pixels

_LEAST_SIDE = 240  # pixels; smaller pictures are enlarged by a whole factor
_GAP = 0.16  # between two views, of their width
_FILL = 36  # opacity of a target, of 255


def draw_regions(pixels: Pixels, boxes: Boxes) -> Image.Image:
    """An image with its target regions, one colour each."""
    picture = _enlarged(pixels)
    pen = ImageDraw.Draw(picture)
    for i, box in enumerate(_corners(boxes, picture.size)):
        pen.rectangle(box, outline=_colour(i), width=2)
    return picture


def draw_joined_views(views: Sequence[Pixels], boxes: Sequence[Boxes]) -> Image.Image:
    """Two views of an image side by side.

    The same region has one colour in both, and a line from one to the other.

    Args:
        views: two images of one size.
        boxes: [P, 4] of each; box p of one view and box p of the other show the same region.
    """
    panels = [draw_regions(view, own) for view, own in zip(views, boxes, strict=True)]
    width, height = panels[0].size
    offset = width + round(_GAP * width)
    canvas = Image.new("RGB", (offset + width, height), "white")
    for left, panel in zip((0, offset), panels, strict=True):
        canvas.paste(panel, (left, 0))
    pen = ImageDraw.Draw(canvas)
    corners = [_corners(own, (width, height)) for own in boxes]
    for i, (first, second) in enumerate(zip(*corners, strict=True)):
        ends = (_right_edge(first), (_left_edge(second)[0] + offset, _left_edge(second)[1]))
        pen.line(ends, fill=_colour(i), width=1)
        for x, y in ends:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=_colour(i))
    return canvas


def draw_matches(pixels: Pixels, wanted: Boxes, found: Boxes) -> Image.Image:
    """An image with its targets, tinted and dashed, and their matched predictions as solid outlines."""
    picture = _enlarged(pixels)
    tinted = picture.convert("RGBA")
    targets = _corners(wanted, picture.size)
    for i, box in enumerate(targets):
        layer = Image.new("RGBA", picture.size)
        ImageDraw.Draw(layer).rectangle(box, fill=(*_colour(i), _FILL))
        tinted.alpha_composite(layer)
    picture = tinted.convert("RGB")
    pen = ImageDraw.Draw(picture)
    for i, box in enumerate(targets):
        dashed_rectangle(pen, box, _colour(i))
    for i, box in enumerate(_corners(found, picture.size)):
        pen.rectangle(box, outline=_colour(i), width=3)
    return picture


def _enlarged(pixels: Pixels) -> Image.Image:
    picture = Image.fromarray(pixels)
    factor = max(1, round(_LEAST_SIDE / min(picture.size)))
    if factor == 1:
        return picture
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)


def _corners(boxes: Boxes, size: tuple[int, int]) -> list[Rect]:
    """(x0, y0, x1, y1) pixels inside a picture of (width, height)."""
    limit = np.asarray([*size, *size], dtype=np.float64)
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    corners = np.clip(np.concatenate([low, high], axis=1) * limit, 0, limit - 1)
    return [(float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in corners]


def _left_edge(box: Rect) -> Point:
    return box[0], (box[1] + box[3]) / 2


def _right_edge(box: Rect) -> Point:
    return box[2], (box[1] + box[3]) / 2


def _colour(i: int) -> tuple[int, int, int]:
    red, green, blue = PALETTE.by_idx(i).as_rgb()
    return red, green, blue
