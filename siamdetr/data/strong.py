"""Strong augmentation of labelled images: mosaic, copy-paste, scale jitter, colour, cut-out.

Mosaic: Bochkovskiy et al. 2020 (YOLOv4, arXiv:2004.10934, §3.3). Copy-paste: Dwibedi et al. 2017 (arXiv:1708.01642).
Scale jitter: Ghiasi et al. 2021 (arXiv:2012.07177, §3). Cut-out: DeVries and Taylor 2017 (arXiv:1708.04552).
Ours: objects are pasted as boxes with soft edges, since there are no masks, and only where they hide little of the
others.

Every choice is drawn from the generator of the sample, so that an item stays a function of (seed, epoch, index).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from torchvision.transforms.v2 import functional

from siamdetr.data.transforms import Boxes, Labels
from siamdetr.images.randomness import Random

MOSAIC, PASTE, JITTER, COLOUR, CUT = 0.5, 0.5, 0.5, 0.8, 0.3  # probabilities
_GREY = (114, 114, 114)
_TILE = (0.5, 1.0)  # longer side of a mosaic's image, as a share of the canvas
_CENTRE = (0.3, 0.7)  # of a mosaic, as shares of the canvas
_PASTED = 3  # objects at most
_PASTE_SCALE = (0.5, 1.5)
_PASTE_TRIES = 4
_MOST_HIDDEN = 0.3  # share of an object that a pasted one may hide
_LEAST_PASTED = 16  # pixels, the shorter side: a soft edge leaves nothing of smaller ones
_FEATHER = 2  # pixels of a pasted object's soft edge
_SCALE = (0.5, 2.0)
_HOLES = (1, 3)
_HOLE_SIDE = (0.05, 0.25)  # of the image's sides
_LEAST_VISIBLE = 0.25  # share of a box, else it is dropped
_LEAST_SIDE = 2.0  # pixels


@dataclass(frozen=True)
class LabelledImage:
    """An RGB image with its boxes [m, 4] xyxy pixels and labels [m]."""

    image: Image.Image
    boxes: Boxes
    labels: Labels


def augment_strongly(
    first: LabelledImage, other: Callable[[int], LabelledImage], count: int, side: int, rng: Random
) -> LabelledImage:
    """Augment an image together with others of its data set.

    Args:
        first: the image.
        other: the image at a position of the data set.
        count: images in the data set.
        side: of a mosaic, pixels.
        rng: source of every choice.
    """

    def drawn() -> LabelledImage:
        return other(int(rng.integers(count)))

    found = mosaic([first, drawn(), drawn(), drawn()], side, rng) if rng.random() < MOSAIC else first
    if rng.random() < PASTE:
        found = paste(found, drawn(), rng)
    if rng.random() < JITTER:
        found = jitter_scale(found, rng)
    if rng.random() < COLOUR:
        found = LabelledImage(change_colour(found.image, rng), found.boxes, found.labels)
    return cut_out(found, rng) if rng.random() < CUT else found


def mosaic(images: list[LabelledImage], side: int, rng: Random) -> LabelledImage:
    """Four images around a point of a square canvas, each cut off at its quarter."""
    canvas = Image.new("RGB", (side, side), _GREY)
    x, y = (round(side * float(rng.uniform(*_CENTRE))) for _ in range(2))
    quarters = [(0, 0, x, y), (x, 0, side, y), (0, y, x, side), (x, y, side, side)]
    boxes, labels = [], []
    for number, (one, quarter) in enumerate(zip(images, quarters, strict=True)):
        scale = side * float(rng.uniform(*_TILE)) / max(one.image.size)
        width, height = (max(1, round(length * scale)) for length in one.image.size)
        left, top = (x if number % 2 else x - width), (y if number > 1 else y - height)
        tile = one.image.resize((width, height), Image.Resampling.BILINEAR)
        inside = (
            max(left, quarter[0]),
            max(top, quarter[1]),
            min(left + width, quarter[2]),
            min(top + height, quarter[3]),
        )
        part = (inside[0] - left, inside[1] - top, inside[2] - left, inside[3] - top)
        canvas.paste(tile.crop(part), inside[:2])
        factors = np.array([width / one.image.width, height / one.image.height] * 2, dtype=np.float32)
        moved = one.boxes * factors + np.array([left, top] * 2, dtype=np.float32)
        clipped, kept = _visible(moved, inside)
        boxes.append(clipped[kept])
        labels.append(one.labels[kept])
    return LabelledImage(canvas, np.concatenate(boxes), np.concatenate(labels))


def paste(target: LabelledImage, source: LabelledImage, rng: Random) -> LabelledImage:
    """Objects of another image, pasted where they hide at most a third of any object."""
    image, boxes, labels = target.image.copy(), list(target.boxes), list(target.labels)
    chosen = rng.permutation(len(source.boxes))[:_PASTED]
    for row in chosen:
        x0, y0, x1, y1 = (int(value) for value in source.boxes[row].round())
        scale = math.exp(rng.uniform(*np.log(_PASTE_SCALE)))
        width, height = round((x1 - x0) * scale), round((y1 - y0) * scale)
        if min(width, height) < _LEAST_PASTED or width > image.width // 2 or height > image.height // 2:
            continue
        place = _free_place((width, height), image.size, np.array(boxes).reshape(-1, 4), rng)
        if place is None:
            continue
        patch = source.image.crop((x0, y0, x1, y1)).resize((width, height), Image.Resampling.BILINEAR)
        image.paste(patch, place, _soft_mask((width, height)))
        boxes.append(np.array([*place, place[0] + width, place[1] + height], dtype=np.float32))
        labels.append(source.labels[row])
    return LabelledImage(
        image, np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(labels, dtype=target.labels.dtype)
    )


def jitter_scale(one: LabelledImage, rng: Random) -> LabelledImage:
    """The image enlarged and cropped, or made smaller on a grey canvas, at its own size."""
    scale = math.exp(rng.uniform(*np.log(_SCALE)))
    width, height = (max(1, round(length * scale)) for length in one.image.size)
    left, top = (
        int(rng.integers(min(0, whole - length), max(0, whole - length) + 1))
        for whole, length in zip(one.image.size, (width, height), strict=True)
    )
    canvas = Image.new("RGB", one.image.size, _GREY)
    canvas.paste(one.image.resize((width, height), Image.Resampling.BILINEAR), (left, top))
    factors = np.array([width / one.image.width, height / one.image.height] * 2, dtype=np.float32)
    moved = one.boxes * factors + np.array([left, top] * 2, dtype=np.float32)
    clipped, kept = _visible(moved, (0, 0, *one.image.size))
    return LabelledImage(canvas, clipped[kept], one.labels[kept])


def change_colour(image: Image.Image, rng: Random) -> Image.Image:
    """Brightness, contrast, saturation and hue, in the ranges of SSD (arXiv:1512.02325, §2.2)."""
    changed = functional.adjust_brightness(image, float(rng.uniform(0.875, 1.125)))
    changed = functional.adjust_contrast(changed, float(rng.uniform(0.5, 1.5)))
    changed = functional.adjust_saturation(changed, float(rng.uniform(0.5, 1.5)))
    recoloured: Image.Image = functional.adjust_hue(changed, float(rng.uniform(-0.05, 0.05)))
    return recoloured


def cut_out(one: LabelledImage, rng: Random) -> LabelledImage:
    """Grey rectangles; a box that is hidden but for a quarter is dropped."""
    image, kept = one.image.copy(), np.ones(len(one.boxes), dtype=bool)
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(_HOLES[0], _HOLES[1] + 1))):
        width, height = (max(1.0, length * float(rng.uniform(*_HOLE_SIDE))) for length in image.size)
        x, y = float(rng.uniform(0, image.width - width)), float(rng.uniform(0, image.height - height))
        hole = np.array([x, y, x + width, y + height], dtype=np.float32)
        pen.rectangle(tuple(hole.tolist()), fill=_GREY)
        kept &= _hidden(one.boxes, hole) <= 1 - _LEAST_VISIBLE
    return LabelledImage(image, one.boxes[kept], one.labels[kept])


def _visible(boxes: Boxes, window: tuple[float, float, float, float]) -> tuple[Boxes, NDArray[np.bool_]]:
    """Boxes cut off at a window, and which of them are still worth learning."""
    x0, y0, x1, y1 = window
    low, high = np.array([x0, y0] * 2, dtype=np.float32), np.array([x1, y1] * 2, dtype=np.float32)
    clipped = np.asarray(np.clip(boxes, low, high), dtype=np.float32)
    sides = clipped[:, 2:] - clipped[:, :2]
    before = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return clipped, (sides.min(1, initial=np.inf) >= _LEAST_SIDE) & (sides.prod(1) >= _LEAST_VISIBLE * before)


def _hidden(boxes: Boxes, cover: NDArray[np.float32]) -> NDArray[np.float32]:
    """[m] share of each box that a rectangle covers."""
    corner, end = np.maximum(boxes[:, :2], cover[:2]), np.minimum(boxes[:, 2:], cover[2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return np.asarray((end - corner).clip(0).prod(1) / np.maximum(area, 1e-6), dtype=np.float32)


def _free_place(
    size: tuple[int, int], whole: tuple[int, int], boxes: NDArray[np.float32], rng: Random
) -> tuple[int, int] | None:
    """(x, y) where an object hides little of the others; None where no try finds one."""
    for _ in range(_PASTE_TRIES):
        x, y = (int(rng.integers(all_ - own + 1)) for own, all_ in zip(size, whole, strict=True))
        cover = np.array([x, y, x + size[0], y + size[1]], dtype=np.float32)
        if _hidden(boxes, cover).max(initial=0.0) <= _MOST_HIDDEN:
            return x, y
    return None


def _soft_mask(size: tuple[int, int]) -> Image.Image:
    """Opaque inside, fading over the edge."""
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle((_FEATHER, _FEATHER, size[0] - 1 - _FEATHER, size[1] - 1 - _FEATHER), fill=255)
    return mask.filter(ImageFilter.GaussianBlur(_FEATHER / 2))
