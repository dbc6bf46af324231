"""One view of an image with the regions to detect in it.

Samples of UP-DETR (arXiv:2011.09094, §3.1) and DETReg (arXiv:2106.04550, §3.1).

Shortest sides are 320..480 pixels, longest at most 600; flips and crops are those of finetuning.
Each region is cut out, resized and augmented by itself.
Ours: regions are cut out of the view, flipped and clipped like it; the official code cuts them out of the file.
An image without proposals has no regions for DETReg (officially another image takes its place),
and random ones for UP-DETR, which needs its full number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from siamdetr.data.transforms import FinetuneTransform
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.images.randomness import Random
from siamdetr.pretext.photometric import Pixels, augment
from siamdetr.pretext.views import SCALES, cut_region, repeat_regions
from siamdetr.settings.pretext import DETRegSettings, UPDETRSettings

Boxes = NDArray[np.float32]  # [n, 4]
OneViewSettings = UPDETRSettings | DETRegSettings

LEAST_PATCH = 8  # pixels of the image: sides of random patches


@dataclass(frozen=True)
class RegionSample:
    """An image and regions of it.

    Attributes:
        image: [H, W, 3] uint8 RGB.
        boxes: [n, 4] float32 (cx, cy, w, h) fractions of the image; n may be 0.
        crops: [n, C, C, 3] uint8 RGB, the regions cut out and augmented each by itself.
    """

    image: Pixels
    boxes: Boxes
    crops: Pixels

    @property
    def panels(self) -> list[tuple[Pixels, Boxes]]:
        """The image with its regions, as pictures show it."""
        return [(self.image, self.boxes)]


def make_regions(image: Image.Image, proposals: Boxes | None, settings: OneViewSettings, rng: Random) -> RegionSample:
    """Draw the view of an image, and cut the regions out of it.

    Args:
        image: RGB.
        proposals: [n, 4] (x0, y0, x1, y1) fractions of the image, best first; None: random patches.
        settings: sizes and numbers.
        rng: source of every choice.
    """
    wanted, size = settings.num_regions, (image.height, image.width)
    needs_all = isinstance(settings, UPDETRSettings)
    fractions = random_patches(size, wanted, rng) if proposals is None else proposals
    if not needs_all:
        fractions = fractions[:wanted]  # officially of the image, not of its crop
    pixels = fractions * np.asarray([image.width, image.height] * 2, dtype=np.float32)
    view = _transform(settings)(image, pixels, np.zeros(len(pixels), dtype=np.int32), rng)
    boxes = _exactly(view.boxes, wanted, view.pixels, rng) if needs_all else view.boxes
    boxes = _fractions(boxes, view.pixels)
    crops = np.empty((len(boxes), settings.crop_size, settings.crop_size, 3), dtype=np.uint8)
    for i, box in enumerate(boxes):
        crops[i] = augment(cut_region(view.pixels, box, settings.crop_size), rng)
    return RegionSample(view.pixels, boxes, crops)


def random_patches(size: tuple[int, int], count: int, rng: Random) -> Boxes:
    """[count, 4] random patches (x0, y0, x1, y1), fractions, as UP-DETR draws them.

    `size` is the (height, width) of the image in pixels.

    Width and height are uniform between 8 pixels and the image's side less 8, and the position is uniform.
    """
    whole = np.asarray([size[1], size[0]], dtype=np.float64)
    least = np.minimum(LEAST_PATCH, whole / 2)
    sides = rng.uniform(least, whole - least, (count, 2))
    corners = rng.random((count, 2)) * (whole - sides)
    return np.asarray(np.concatenate([corners, corners + sides], axis=1) / np.tile(whole, 2), dtype=np.float32)


def _transform(settings: OneViewSettings) -> FinetuneTransform:
    """Scales of pretraining, otherwise as in finetuning."""
    reference, sides, longest = SCALES[settings.scales]
    size = settings.size
    spec = PreprocessingSpec.from_size(size, round(longest * size / reference) if isinstance(size, int) else None)
    return FinetuneTransform(spec, settings.augment, tuple(side / sides[-1] for side in sides))


def _exactly(boxes: Boxes, wanted: int, pixels: Pixels, rng: Random) -> Boxes:
    """[wanted, 4] boxes: the first ones, repeated where there are fewer.

    Random patches where there is none.
    """
    height, width = pixels.shape[:2]
    limit = np.asarray([0, 0, width, height], dtype=np.float32)
    if len(boxes) == 0:
        boxes = random_patches((height, width), wanted, rng) * limit[[2, 3, 2, 3]]
    return repeat_regions(boxes, wanted, limit, rng)


def _fractions(boxes: Boxes, pixels: Pixels) -> Boxes:
    """[n, 4] (cx, cy, w, h) fractions of (x0, y0, x1, y1) pixels."""
    height, width = pixels.shape[:2]
    low, high = boxes[:, :2], boxes[:, 2:]
    return np.asarray(
        np.concatenate([(low + high) / 2, high - low], axis=1) / [width, height, width, height], dtype=np.float32
    )
