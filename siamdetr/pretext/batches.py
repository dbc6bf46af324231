"""Batches of pretraining, which a pretext's data set makes of images without labels.

Images are uint8 until `normalize` makes them float.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from siamdetr.images.normalize import normalize
from siamdetr.images.preprocessing import Normalization
from siamdetr.models.backbone.pyramid import Maps
from siamdetr.pretext.common import FrozenTeacher, crop_features, crops_at_once
from siamdetr.structures.targets import Targets, region_targets

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Batch = TypeVar("Batch", bound="DataclassInstance")


class PretextSample(Protocol):
    """The part of a sample that the pictures of a run need."""

    @property
    def panels(self) -> list[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
        """One or two images [H, W, 3] uint8 RGB with their regions [n, 4] (cx, cy, w, h) fractions.

        Predictions are drawn on the first.
        """


class PretextBatch(Protocol):
    """The part of a batch that training needs; only its pretext reads the rest."""

    @property
    def targets(self) -> Targets:
        """The regions to detect in the B images."""

    def normalized(self, normalization: Normalization) -> Self:
        """The same batch with float pixels (`siamdetr.images.normalize`)."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch on another device."""

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory (the data loader calls this)."""


def view_targets(boxes: Tensor) -> Targets:
    """The regions [V, P, 4] of V views as detection targets, all labelled "an object"."""
    return region_targets(boxes.flatten(0, 1), [boxes.shape[1]] * len(boxes))


def with_each(batch: Batch, way: Callable[[Any], Any]) -> Batch:
    """The same batch with each field changed in one way; of a tuple each entry."""
    parts = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    changed = {name: tuple(map(way, part)) if isinstance(part, tuple) else way(part) for name, part in parts.items()}
    return dataclasses.replace(batch, **changed)


@dataclass(frozen=True)
class ViewBatch:
    """Two views of each of B unlabelled images: view 1 of all, then view 2 of all.

    Attributes:
        images: [2B, 3, H, W] RGB; uint8 from the loader, float after `normalize`.
        padding: [2B, H, W] bool, True = padded, not image.
        boxes: [2B, P, 4] (cx, cy, w, h) fractions of the unpadded view: the same P regions, seen in either view.
        sizes: [2B, 2] int64 (H, W) of the unpadded views, pixels.
        crops: [2B, P, 3, C, C] the regions cut out and resized; uint8, then float like the images.
    """

    images: Tensor
    padding: Tensor
    boxes: Tensor
    sizes: Tensor
    crops: Tensor

    @property
    def targets(self) -> Targets:
        """The 2B P regions as detection targets, all labelled "an object"."""
        return view_targets(self.boxes)

    def features(self, teacher: FrozenTeacher) -> Maps:
        """[2B, F, h, w] of the views, of each level."""
        return teacher(self.images)

    def crop_features(self, teacher: FrozenTeacher) -> Tensor:
        """[2B, P, F] features of the crops.

        At most as many pixels as the views have go through the backbone at once, so that crops do not raise the peak of
        memory.
        """
        return crop_features(teacher, self.crops, crops_at_once(self.images, self.crops))

    def normalized(self, normalization: Normalization) -> ViewBatch:
        """See `PretextBatch`."""
        return normalize(self, *normalization)

    def with_pixels(self, images: Tensor, of_crops: Callable[[Tensor], Tensor]) -> ViewBatch:
        """The same batch with other images, and with crops that went through `of_crops`."""
        return dataclasses.replace(self, images=images, crops=of_crops(self.crops))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ViewBatch:
        """The same batch on another device."""
        return with_each(self, lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ViewBatch:
        """The same batch in page-locked memory (the data loader calls this)."""
        return with_each(self, lambda part: part.pin_memory())


@dataclass(frozen=True)
class RegionBatch:
    """B unlabelled images with the regions to detect in them, for UP-DETR and DETReg.

    Attributes:
        images: [B, 3, H, W] RGB; uint8 from the loader, float after `normalize`.
        padding: [B, H, W] bool, True = padded, not image.
        targets: the M regions as boxes, all of one label; an image may have none.
        crops: [M, 3, C, C] the regions cut out and resized, in the order of the targets; uint8, then float like the
            images.
    """

    images: Tensor
    padding: Tensor
    targets: Targets
    crops: Tensor

    def normalized(self, normalization: Normalization) -> RegionBatch:
        """See `PretextBatch`."""
        return normalize(self, *normalization)

    def with_pixels(self, images: Tensor, of_crops: Callable[[Tensor], Tensor]) -> RegionBatch:
        """The same batch with other images, and with crops that went through `of_crops`."""
        return dataclasses.replace(self, images=images, crops=of_crops(self.crops))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RegionBatch:
        """The same batch on another device."""
        return with_each(self, lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> RegionBatch:
        """The same batch in page-locked memory (the data loader calls this)."""
        return with_each(self, lambda part: part.pin_memory())
