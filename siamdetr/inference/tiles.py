"""Prediction on large images in overlapping tiles, merged by non-maximum suppression.

Slicing as in SAHI (arXiv:2202.06934).

The whole image is one more tile, so that objects larger than a tile are found as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from siamdetr.images.preprocessing import ImageLike, load_image
from siamdetr.inference.predictor import Predictor, predict

if TYPE_CHECKING:
    import supervision as sv
    from PIL import Image


@dataclass(frozen=True)
class Tiling:
    """The tiling of an image.

    Attributes:
        size: side of a tile, pixels.
        overlap: of neighbouring tiles, share of the side, in [0, 1).
        merge_iou: boxes of one class that overlap by more are one object.
    Raises:
        ValueError: a value is out of range.
    """

    size: int = 640
    overlap: float = 0.2
    merge_iou: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 32:
            raise ValueError(f"--tile: got {self.size} pixels, expected 32 or more")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"--overlap: got {self.overlap}, expected a share from 0 to below 1")
        if not 0 < self.merge_iou <= 1:
            raise ValueError(f"tiles: merge_iou is {self.merge_iou}, expected above 0 and at most 1")

    def tiles(self, width: int, height: int) -> list[tuple[int, int, int, int]]:
        """(x0, y0, x1, y1) pixels of the tiles of an image; the last of a row ends at the image's edge."""
        return [
            (x, y, min(x + self.size, width), min(y + self.size, height))
            for y in self._starts(height)
            for x in self._starts(width)
        ]

    def _starts(self, length: int) -> Iterator[int]:
        step = max(1, round(self.size * (1 - self.overlap)))
        last = max(0, length - self.size)
        yield from range(0, last, step)
        yield last


def detect(
    model: Predictor, images: Sequence[ImageLike], threshold: float | None = None, tiling: Tiling | None = None
) -> list[sv.Detections]:
    """Detections of images, by tiles if a tiling is given; `threshold` None: the model's own."""
    if tiling is None:
        found = predict(model, images, threshold=threshold, batch_size=len(images))
        assert isinstance(found, list)
        return found
    return [predict_tiled(model, image, tiling, threshold=threshold) for image in images]


def predict_tiled(
    model: Predictor, image: ImageLike, tiling: Tiling, *, threshold: float | None = None, batch_size: int = 8
) -> sv.Detections:
    """Detections of an image, tile by tile.

    An image no larger than a tile is predicted as a whole.

    Args:
        model: any opened model.
        image: PIL image, uint8 RGB array or path.
        tiling: size and overlap of the tiles.
        threshold: least score; None: the model's own.
        batch_size: tiles at a time.
    Returns:
        Detections in pixels of the image, best first.
    """
    import supervision as sv

    picture = load_image(image)
    places = tiling.tiles(*picture.size)
    whole = (0, 0, *picture.size)
    crops = [_crop(picture, place) for place in places if place != whole]
    found = predict(model, [picture, *crops], threshold=threshold, batch_size=batch_size)
    assert isinstance(found, list)
    offsets = [whole, *(place for place in places if place != whole)]
    for detections, (x, y, _, _) in zip(found, offsets, strict=True):
        detections.xyxy = detections.xyxy + np.array([x, y, x, y], dtype=np.float32)
    there = [detections for detections in found if len(detections)]
    if not there:
        return found[0]
    merged = sv.Detections.merge(there)
    kept = merged.with_nms(threshold=tiling.merge_iou) if crops else merged
    assert kept.confidence is not None
    best_first = kept[np.argsort(-kept.confidence, kind="stable")]
    assert isinstance(best_first, sv.Detections)
    return best_first


def _crop(picture: Image.Image, place: tuple[int, int, int, int]) -> Image.Image:
    return picture.crop(place)
