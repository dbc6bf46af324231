"""Two overlapping views of one image with the same regions in both.

Source: Siamese DETR, arXiv:2303.18144, §3.1, and its official code.

Geometry is computed in the "frame", the image after resizing and flipping; pixels are resampled once, from the
original.
Ours: the official code resamples twice (image, then view); it replaces a sample without a usable region by the one
before it in the data set, where random regions are used here.
Regions that are repeated to fill up are clamped, never marked invalid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from siamdetr.images import opencv as cv2
from siamdetr.images.randomness import Random
from siamdetr.pretext.photometric import Pixels, augment
from siamdetr.proposals.methods import pairwise_overlap
from siamdetr.proposals.random_boxes import random_boxes
from siamdetr.settings.pretext import PretextSettings, SiameseSettings

Boxes = NDArray[np.float32]  # [n, 4]
Rect = tuple[float, float, float, float]  # (x0, y0, x1, y1)

OUTER_AREA = (0.5, 1.0)  # of the image
OUTER_ASPECT = (3 / 4, 4 / 3)  # width / height
LEAST_AREA = 0.05  # of the intersection: smaller regions are dropped
REPEAT_JITTER = 0.1  # of width and height, for regions that are repeated to fill up

# Shortest sides of the resize, and the longest side, in pixels for images of `SiameseSettings.size` 480 and 800.
SCALES: dict[str, tuple[int, tuple[int, ...], int]] = {
    "imagenet": (480, (320, 336, 352, 368, 400, 416, 432, 448, 464, 480), 600),
    "coco": (800, (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800), 1333),
}


@dataclass(frozen=True)
class ViewGeometry:
    """The geometry of the two views of an image.

    Attributes:
        frame: (height, width) in pixels of the resized image; all rectangles are (x0, y0, x1, y1) pixels in it, after
            the flip.
        flip: True = mirrored left to right; both views are.
        views: the two rectangles.
        intersection: their common part.
        size: (height, width) in pixels that both views are resized to.
    """

    frame: tuple[int, int]
    flip: bool
    views: tuple[Rect, Rect]
    intersection: Rect
    size: tuple[int, int]


@dataclass(frozen=True)
class ViewSample:
    """Two augmented views and their regions.

    Attributes:
        images: 2 arrays [H, W, 3] uint8 RGB of one size.
        boxes: [2, P, 4] float32 (cx, cy, w, h) fractions of each view: region p of view 1 shows what region p of view 2
            shows.
        crops: [2, P, C, C, 3] uint8 RGB, the regions cut from the views before their augmentation, then augmented each
            by itself.
    """

    images: tuple[Pixels, Pixels]
    boxes: Boxes
    crops: Pixels

    @property
    def panels(self) -> list[tuple[Pixels, Boxes]]:
        """Each view with its regions, as pictures show it."""
        return list(zip(self.images, self.boxes, strict=True))


def make_views(image: Image.Image, proposals: Boxes | None, settings: SiameseSettings, rng: Random) -> ViewSample:
    """Draw the two views of an image, and cut the regions out of them.

    Args:
        image: RGB.
        proposals: [n, 4] (x0, y0, x1, y1) fractions of the image, best first; None: random regions.
        settings: sizes and numbers.
        rng: source of every choice.
    """
    geometry = sample_geometry((image.height, image.width), settings, rng)
    framed = None if proposals is None else _into_frame(proposals, geometry)
    regions = choose_regions(
        framed,
        geometry.intersection,
        settings.num_regions,
        rng,
        inside=settings.inside,
        distinct=settings.distinct,
        least_area=settings.least_area,
    )
    boxes = np.stack([_fractions(regions, view) for view in geometry.views])
    views = [_cut(image, view, geometry) for view in geometry.views]
    crops = np.empty((2, len(regions), settings.crop_size, settings.crop_size, 3), dtype=np.uint8)
    for which in range(2):
        for p, box in enumerate(boxes[which]):
            crops[which, p] = augment(cut_region(views[which], box, settings.crop_size), rng)
    return ViewSample((augment(views[0], rng), augment(views[1], rng)), boxes, crops)


def sample_geometry(size: tuple[int, int], settings: SiameseSettings, rng: Random) -> ViewGeometry:
    """Draw scale, flip, outer rectangle and the two views.

    Args:
        size: (height, width) of the image, pixels.
        settings: of which `size`, `scales` and `view_iou` are used.
        rng: source of every choice.
    """
    reference, sides, longest = SCALES[settings.scales]
    fixed = settings.size if isinstance(settings.size, tuple) else None
    share = (settings.size if isinstance(settings.size, int) else min(settings.size)) / reference
    shortest = sides[rng.integers(len(sides))] * share
    factor = min(shortest / min(size), longest * share / max(size))
    height, width = (max(8, round(side * factor)) for side in size)
    flip = bool(rng.random() < 0.5)
    outer = _outer_rect(height, width, rng)
    views, intersection = two_views(outer, settings.view_iou, rng)
    out = fixed or (round(outer[3] - outer[1]), round(outer[2] - outer[0]))
    return ViewGeometry((height, width), flip, views, intersection, out)


def largest_side(settings: PretextSettings) -> int:
    """The largest shortest side in pixels; of a fixed size the longer side."""
    return settings.size if isinstance(settings.size, int) else max(settings.size)


def two_views(outer: Rect, least_iou: float, rng: Random) -> tuple[tuple[Rect, Rect], Rect]:
    """Two rectangles inside `outer` that overlap by an IoU in [least_iou, 1), and their intersection.

    The intersection is centred in `outer` and has its aspect; its sides are r times as long. View A reaches from the
    top left of `outer` to the bottom right of the intersection, view B from the top left of the intersection to the
    bottom right of `outer`; both have sides (1 + r)/2. Their IoU is t if (2 + t) r² - 2 t r - t = 0. Then each outer
    corner moves toward the intersection by a uniform share of the distance, and half of the time A and B are swapped.
    """
    x0, y0, x1, y1 = outer
    t = least_iou
    r = (t + math.sqrt(2 * t * t + 2 * t)) / (2 + t)
    dx, dy = (x1 - x0) * (1 - r) / 2, (y1 - y0) * (1 - r) / 2
    inner = (x0 + dx, y0 + dy, x1 - dx, y1 - dy)
    a, b = rng.random(2)
    first = (x0 + a * dx, y0 + a * dy, inner[2], inner[3])
    second = (inner[0], inner[1], x1 - b * dx, y1 - b * dy)
    return ((second, first) if rng.random() < 0.5 else (first, second)), inner


def choose_regions(
    proposals: Boxes | None,
    intersection: Rect,
    num_regions: int,
    rng: Random,
    *,
    inside: float = 0.0,
    distinct: float = 1.0,
    least_area: float = LEAST_AREA,
) -> Boxes:
    """[num_regions, 4] regions inside `intersection`; the first is the intersection itself.

    Args:
        proposals: [n, 4] (x0, y0, x1, y1) in the frame of `intersection`, best first; None: random ones.
        intersection: of the views.
        num_regions: at least 1.
        rng: for random regions, and for the jitter of repeated ones.
        inside: least share of a proposal's area in the intersection. Ours: above 0, proposals that clipping would turn
            into nearly the whole intersection are left out.
        distinct: greatest IoU with a region that was chosen before. Ours: below 1, near-duplicates are left out.
        least_area: of the intersection: smaller regions are dropped.
    """
    whole = np.asarray([intersection], dtype=np.float32)
    wanted = num_regions - 1
    if wanted == 0:
        return whole
    kept = np.zeros((0, 4), dtype=np.float32)
    if proposals is not None and len(proposals):
        clamped = _clamp(proposals, whole[0])
        areas = _areas(clamped)
        fits = (areas >= least_area * _areas(whole)[0]) & (areas >= inside * _areas(proposals))
        kept = clamped[fits] if distinct == 1 else _distinct(clamped[fits], whole, wanted, distinct)
        kept = kept[:wanted]
    if len(kept) == 0:
        kept = whole[:, [0, 1, 0, 1]] + random_boxes(rng) * _sides(whole)
        kept = kept[:wanted]
    return np.concatenate([whole, repeat_regions(kept, wanted, whole[0], rng)]).astype(np.float32)


def _distinct(boxes: Boxes, whole: Boxes, wanted: int, most: float) -> Boxes:
    """The first boxes, at most `wanted`, whose IoU with `whole` and with one another is at most `most`."""
    chosen = whole
    while len(chosen) <= wanted and len(boxes):
        boxes = boxes[pairwise_overlap(boxes, chosen[-1:])[:, 0] <= most]
        chosen = np.concatenate([chosen, boxes[:1]])
        boxes = boxes[1:]
    return chosen[1:]


def repeat_regions(regions: Boxes, wanted: int, rect: NDArray[np.float32], rng: Random) -> Boxes:
    """[wanted, 4] the first regions; fewer regions are repeated, jittered inside `rect`.

    At least one region is needed.
    """
    missing = wanted - len(regions)
    if missing <= 0:
        return regions[:wanted]
    again = regions[np.arange(missing) % len(regions)]
    shift = rng.uniform(-REPEAT_JITTER, REPEAT_JITTER, again.shape) * _sides(again)
    return np.concatenate([regions, _clamp((again + shift).astype(np.float32), rect)])


def _outer_rect(height: int, width: int, rng: Random) -> Rect:
    """A rectangle of whole pixels with .5..1 of the image's area and an aspect of 3/4..4/3.

    After 10 failed tries, a centred one.
    """
    for _ in range(10):
        area = rng.uniform(*OUTER_AREA) * height * width
        aspect = math.exp(rng.uniform(math.log(OUTER_ASPECT[0]), math.log(OUTER_ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return (x, y, x + w, y + h)
    aspect = min(max(width / height, OUTER_ASPECT[0]), OUTER_ASPECT[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    x, y = (width - w) // 2, (height - h) // 2
    return (x, y, x + w, y + h)


def _into_frame(fractions: Boxes, geometry: ViewGeometry) -> Boxes:
    """(x0, y0, x1, y1) fractions of the unflipped image -> [n, 4] pixels of the frame."""
    height, width = geometry.frame
    boxes = fractions * np.asarray([width, height, width, height], dtype=np.float32)
    if geometry.flip:
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    return boxes


def _fractions(boxes: Boxes, view: Rect) -> Boxes:
    """(x0, y0, x1, y1) in the frame, inside the view -> [n, 4] (cx, cy, w, h) fractions of the view."""
    x0, y0, x1, y1 = view
    corners = (boxes - np.asarray([x0, y0, x0, y0])) / np.asarray([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
    low, high = np.clip(corners[:, :2], 0, 1), np.clip(corners[:, 2:], 0, 1)
    return np.concatenate([(low + high) / 2, high - low], axis=1).astype(np.float32)


def _cut(image: Image.Image, view: Rect, geometry: ViewGeometry) -> Pixels:
    """[H, W, 3] pixels of the view, resampled once from the original.

    Pillow's antialiased bilinear filter, as in preprocessing.
    """
    (height, width), (x0, y0, x1, y1) = geometry.frame, view
    if geometry.flip:
        x0, x1 = width - x1, width - x0
    sx, sy = image.width / width, image.height / height
    box = (max(0.0, x0 * sx), max(0.0, y0 * sy), min(image.width, x1 * sx), min(image.height, y1 * sy))
    out_height, out_width = geometry.size
    pixels = np.asarray(image.resize((out_width, out_height), Image.Resampling.BILINEAR, box=box))
    return np.ascontiguousarray(pixels[:, ::-1]) if geometry.flip else pixels


def cut_region(view: Pixels, box: NDArray[np.float32], side: int) -> Pixels:
    """[side, side, 3] the crop of a region (cx, cy, w, h fractions) of a view, to whole pixels.

    Bilinear up to a reduction by 2, where it still reads every pixel; averaging beyond it.
    """
    height, width = view.shape[:2]
    cx, cy, w, h = (float(value) for value in box)
    left, top = min(round((cx - w / 2) * width), width - 1), min(round((cy - h / 2) * height), height - 1)
    right, bottom = max(left + 1, round((cx + w / 2) * width)), max(top + 1, round((cy + h / 2) * height))
    reduction = max(right - left, bottom - top) / side
    how = cv2.INTER_AREA if reduction > 2 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(view[top:bottom, left:right], (side, side), interpolation=how), dtype=np.uint8)


def _clamp(boxes: Boxes, rect: NDArray[np.float32]) -> Boxes:
    low, high = rect[[0, 1, 0, 1]], rect[[2, 3, 2, 3]]
    return np.clip(boxes, low, high).astype(np.float32)


def _sides(boxes: Boxes) -> Boxes:
    """[n, 4] (w, h, w, h)."""
    return (boxes[:, 2:] - boxes[:, :2])[:, [0, 1, 0, 1]]


def _areas(boxes: Boxes) -> NDArray[np.float32]:
    sides = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None)
    return np.asarray(sides[:, 0] * sides[:, 1], dtype=np.float32)
