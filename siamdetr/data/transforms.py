"""Augmentation of labelled images as in DETR (arXiv:2005.12872, §A.4): flip, scales, crops.

Sizes are DETR's, in proportion to the requested one: for 800 pixels, shortest sides of 480..800, and crops of 384..600
pixels from an image with a shortest side of 400, 500 or 600. Ours: crop and resize are one resampling of the original
(Pillow's bilinear, as in preprocessing), not two or three, which is sharper and faster.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from siamdetr.images.preprocessing import PreprocessingSpec, resized_size
from siamdetr.images.randomness import Random
from siamdetr.settings.pretext import Augmentation

FLIP_PROBABILITY = 0.5
CROP_PROBABILITY = 0.5
SCALES = tuple(side / 800 for side in range(480, 801, 32))  # shortest sides, as shares of the size
CROP_SCALES = (400 / 800, 500 / 800, 600 / 800)  # shortest sides that crops are taken from
CROP_SIDES = (384 / 800, 600 / 800)

Boxes = NDArray[np.float32]  # [m, 4] xyxy pixels
Labels = NDArray[np.int32]


@dataclass(frozen=True)
class TransformedImage:
    """An image at the model's size, with its boxes clipped to it.

    Attributes:
        pixels: [h, w, 3] uint8 RGB, not padded.
        boxes: [m, 4] float32 xyxy pixels in it, clipped to it, each with an area.
        labels: [m] int32.
    """

    pixels: NDArray[np.uint8]
    boxes: Boxes
    labels: Labels


@dataclass(frozen=True)
class FinetuneTransform:
    """Resizes an image and its boxes, and augments them.

    Attributes:
        spec: the size, as in evaluation: a shortest side with a longest one, or a fixed (height, width).
        augment: "detr", "scale" (many scales only), "flip" (flip only) or "none", which equals
            `siamdetr.images.preprocessing.resize`.
        scales: the shortest sides of "detr" and "scale", as shares of the size.
    Raises:
        ValueError: letterboxing, which no training uses.
    """

    spec: PreprocessingSpec
    augment: Augmentation = "detr"
    scales: tuple[float, ...] = SCALES

    def __post_init__(self) -> None:
        if self.spec.mode == "letterbox":
            raise ValueError(
                "transform: got mode 'letterbox', expected 'shortest-edge' or 'fixed': batches are padded anyway"
            )

    def __call__(self, image: Image.Image, boxes: Boxes, labels: Labels, rng: Random) -> TransformedImage:
        """Args:
        image: RGB.
        boxes: [m, 4] xyxy pixels.
        labels: [m].
        rng: source of every choice.
        """
        flip = self.augment in ("flip", "detr") and rng.random() < FLIP_PROBABILITY
        region, spec = (0.0, 0.0, float(image.width), float(image.height)), self.spec
        if self.augment == "detr" and rng.random() < CROP_PROBABILITY:
            region = self._crop(image, rng)
        if self.augment in ("scale", "detr"):
            spec = self._scaled(self.scales[rng.integers(len(self.scales))])
        height, width = resized_size((round(region[3] - region[1]), round(region[2] - region[0])), spec)
        pixels = _resample(image, region, (height, width))
        moved = _into_region(boxes, region, (height, width))
        if flip:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
            moved[:, [0, 2]] = width - moved[:, [2, 0]]
        kept = (moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])
        return TransformedImage(pixels, moved[kept], labels[kept])

    @property
    def side(self) -> int:
        """The shortest side that is asked for, pixels."""
        return self.spec.size if isinstance(self.spec.size, int) else min(self.spec.size)

    def _scaled(self, share: float) -> PreprocessingSpec:
        """The spec with a smaller shortest side; a fixed size stays."""
        if self.spec.mode == "fixed":
            return self.spec
        return self.spec.model_copy(update={"size": max(1, round(self.side * share))})

    def _crop(self, image: Image.Image, rng: Random) -> tuple[float, float, float, float]:
        """A region (x0, y0, x1, y1) of the original, in its pixels."""
        shrink = self.side * CROP_SCALES[rng.integers(len(CROP_SCALES))] / min(image.width, image.height)
        low, high = (round(self.side * side) for side in CROP_SIDES)
        sides, starts = [], []
        for original in (image.width, image.height):
            whole = round(original * shrink)
            side = int(rng.integers(min(low, whole), min(whole, high) + 1))
            start = int(rng.integers(whole - side + 1))
            sides.append(side * original / whole)
            starts.append(start * original / whole)
        return (starts[0], starts[1], starts[0] + sides[0], starts[1] + sides[1])


def _resample(
    image: Image.Image, region: tuple[float, float, float, float], size: tuple[int, int]
) -> NDArray[np.uint8]:
    whole = (0.0, 0.0, float(image.width), float(image.height))
    if region == whole and size == (image.height, image.width):
        return np.asarray(image)
    box = (region[0], region[1], min(region[2], whole[2]), min(region[3], whole[3]))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box))


def _into_region(boxes: Boxes, region: tuple[float, float, float, float], size: tuple[int, int]) -> Boxes:
    """[m, 4] boxes of the original in pixels of the resized region, clipped to it."""
    height, width = size
    x0, y0, x1, y1 = region
    offset = np.asarray([x0, y0, x0, y0], dtype=np.float32)
    scale = np.asarray([width / (x1 - x0), height / (y1 - y0)] * 2, dtype=np.float32)
    limit = np.asarray([width, height, width, height], dtype=np.float32)
    return np.asarray(np.clip((boxes - offset) * scale, 0, limit), dtype=np.float32)
