"""Batches of a data loader: uint8 until they are on the device, where `normalize` makes them float.

Images of one batch share a canvas: smaller ones are zero-padded at the right and bottom, and `padding` (True = padded)
says where. Boxes are fractions (cx, cy, w, h) of the image without its padding, so that padding changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

# The class head of pretraining: class 0 never occurs, 1 is "an object"; with softmax, 2 is "no object".
OBJECT_LABEL = 1

Batch = TypeVar("Batch", bound=Any)


@dataclass(frozen=True)
class Targets:
    """The boxes of a whole batch, image after image.

    Attributes:
        boxes: [M, 4] (cx, cy, w, h) fractions of the unpadded image, float.
        labels: [M] int64, contiguous 0..C-1.
        counts: boxes of each image; on the host, so that sizes are known without asking the device. Sum M, length B.
        window: `counts` of every batch whose gradients make one step (gradient accumulation); empty: this batch alone.
    Raises:
        ValueError: boxes, labels and counts do not fit each other.
    """

    boxes: Tensor
    labels: Tensor
    counts: tuple[int, ...]
    window: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        total = sum(self.counts)
        if tuple(self.boxes.shape) != (total, 4) or tuple(self.labels.shape) != (total,):
            raise ValueError(
                f"Targets: counts {self.counts} ask for boxes [{total}, 4] and labels [{total}], got "
                f"{list(self.boxes.shape)} and {list(self.labels.shape)}; give one label a box and one count an image"
            )

    @classmethod
    def from_lists(cls, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Targets:
        """Join per-image boxes [n, 4] and labels [n].

        Raises:
            ValueError: there are not as many lists of labels as of boxes, or an image's two do not fit.
        """
        if len(boxes) != len(labels):
            raise ValueError(
                f"Targets: got boxes of {len(boxes)} images and labels of {len(labels)}; give both for each"
            )
        for image, (one, names) in enumerate(zip(boxes, labels, strict=True)):
            if one.shape[0] != names.shape[0]:
                raise ValueError(f"Targets: image {image} has {one.shape[0]} boxes and {names.shape[0]} labels")
        return cls(
            boxes=torch.cat([one.reshape(-1, 4) for one in boxes]) if boxes else torch.zeros(0, 4),
            labels=torch.cat(list(labels)).long() if labels else torch.zeros(0, dtype=torch.int64),
            counts=tuple(int(one.shape[0]) for one in boxes),
        )

    @property
    def window_counts(self) -> tuple[tuple[int, ...], ...]:
        """`counts` of every batch of the window, of which this one is part."""
        return self.window or (self.counts,)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        """The same targets on another device."""
        return dataclasses.replace(
            self,
            boxes=self.boxes.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Targets:
        """The same targets in page-locked memory (the data loader calls this)."""
        return dataclasses.replace(self, boxes=self.boxes.pin_memory(), labels=self.labels.pin_memory())


def in_one_window(batches: Sequence[Batch]) -> list[Batch]:
    """Join batches whose gradients make one step: the targets of each get the counts of all.

    Batches without targets, such as pairs of views, all have the same number of regions and are returned unchanged.
    """
    if len(batches) == 1 or not all("targets" in batch.__dataclass_fields__ for batch in batches):
        return list(batches)
    window = tuple(batch.targets.counts for batch in batches)
    return [dataclasses.replace(batch, targets=dataclasses.replace(batch.targets, window=window)) for batch in batches]


def region_targets(boxes: Tensor, counts: Sequence[int]) -> Targets:
    """[M, 4] regions, of which each image has `counts`, as targets that are all labelled "an object"."""
    return Targets(boxes, torch.full((len(boxes),), OBJECT_LABEL, device=boxes.device), tuple(counts))


@dataclass(frozen=True)
class DetectionBatch:
    """Labelled images.

    Attributes:
        images: [B, 3, H, W] RGB; uint8 from the loader, float after `normalize`.
        padding: [B, H, W] bool, True = padded, not image.
        targets: boxes and labels.
        image_ids: the data set's own ids.
        original_sizes: [B, 2] int64 (H, W) of the files, pixels: predictions are given in them.
    """

    images: Tensor
    padding: Tensor
    targets: Targets
    image_ids: tuple[int, ...]
    original_sizes: Tensor

    def with_pixels(self, images: Tensor, of_crops: Callable[[Tensor], Tensor]) -> DetectionBatch:
        """The same batch with other images [B, 3, H, W]; it has no crops."""
        return dataclasses.replace(self, images=images)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> DetectionBatch:
        """The same batch on another device."""
        return DetectionBatch(
            images=self.images.to(device, non_blocking=non_blocking),
            padding=self.padding.to(device, non_blocking=non_blocking),
            targets=self.targets.to(device, non_blocking=non_blocking),
            image_ids=self.image_ids,
            original_sizes=self.original_sizes.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> DetectionBatch:
        """The same batch in page-locked memory (the data loader calls this)."""
        return DetectionBatch(
            images=self.images.pin_memory(),
            padding=self.padding.pin_memory(),
            targets=self.targets.pin_memory(),
            image_ids=self.image_ids,
            original_sizes=self.original_sizes.pin_memory(),
        )
