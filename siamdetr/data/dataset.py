"""Data sets for a loader: an item is a function of (seed, epoch, index) alone.

Collates make the batches of `siamdetr.structures.targets`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from siamdetr.data.index import DetectionIndex
from siamdetr.data.strong import LabelledImage, augment_strongly
from siamdetr.data.transforms import FinetuneTransform
from siamdetr.errors import DataError, UnreadableImageError
from siamdetr.images.depth import DEPTH_KEY
from siamdetr.images.open import open_untrusted, read_bytes
from siamdetr.images.randomness import sample_random
from siamdetr.structures.targets import DetectionBatch, Targets

logger = logging.getLogger(__name__)

Sample = TypeVar("Sample")

UNREADABLE_SHARE = 0.01  # of the images; more of them stop the run
UNREADABLE_AT_LEAST = 3  # so that one bad image does not stop a run on 50


@dataclass(frozen=True)
class DetectionItem:
    """One labelled image.

    Attributes:
        image: [3, h, w] uint8 RGB.
        boxes: [m, 4] float32 (cx, cy, w, h) fractions.
        labels: [m] int64.
        image_id: the data set's own id.
        original_size: (H, W) of the file, pixels.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    image_id: int
    original_size: tuple[int, int]


class ImageFiles:
    """Read the images of an index; an unreadable image is replaced by the next readable one.

    Failed images are recorded in memory that worker processes share, so that each is counted and logged once.
    """

    def __init__(self, index: DetectionIndex) -> None:
        if len(index) == 0:
            raise DataError(
                f"{index.root}: got zero images, expected at least one; `siamdetr doctor {index.root}` says why"
            )
        self.index = index
        self.failed = torch.zeros(len(index), dtype=torch.bool)
        self.failed.share_memory_()  # type: ignore[no-untyped-call]
        self._said_depth = torch.zeros(1, dtype=torch.bool)
        self._said_depth.share_memory_()  # type: ignore[no-untyped-call]

    def read(self, i: int, at_least: int | None = None) -> tuple[int, bytes, Image.Image]:
        """The position read, the file's content, and the upright RGB image.

        The position is `i`, or the next one whose image can be read.

        Raises:
            DataError: more than 1 % of the images could not be read.
        """
        for position in (*range(i, len(self.index)), *range(i)):
            if self.failed[position]:
                continue
            try:
                path = self.index.path(position)
                data = read_bytes(path)
                image = open_untrusted(data, name=path, at_least=at_least)
                self._say_depth(path, image)
                return position, data, image
            except UnreadableImageError as error:
                self._note(position, error)
        raise DataError(f"{self.index.root}: none of {len(self.index)} images can be read; `siamdetr doctor` says why")

    def _say_depth(self, path: Path, image: Image.Image) -> None:
        """Log once per run how an image with more than 8 bits per channel was scaled."""
        if DEPTH_KEY in image.info and not self._said_depth.any():
            self._said_depth[0] = True
            logger.warning(
                "%s: more than 8 bits a channel (%s); each such image is scaled by its own depth or range, and only this one is named",
                path,
                image.info[DEPTH_KEY],
            )

    def _note(self, position: int, error: UnreadableImageError) -> None:
        self.failed[position] = True
        logger.warning("%s; the next image takes its place (`siamdetr doctor` lists such images)", error)
        count, allowed = int(self.failed.sum()), max(UNREADABLE_AT_LEAST, int(UNREADABLE_SHARE * len(self.index)))
        if count > allowed:
            raise DataError(
                f"{self.index.root}: {count} of {len(self.index)} images could not be read, at most {allowed} are put up with; "
                f"the last one: {error}. Is a disk or folder gone? `siamdetr doctor {self.index.root}` lists them all"
            )


class ImageDataset(Dataset[Sample]):
    """Samples of the images of an index, by (epoch, i)."""

    def __init__(self, index: DetectionIndex, seed: int) -> None:
        self.index, self.seed = index, seed
        self._files = ImageFiles(index)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def num_unreadable(self) -> int:
        """The number of images that could not be read so far, in all workers together."""
        return int(self._files.failed.sum())


class DetectionDataset(ImageDataset[DetectionItem]):
    """Labelled images, augmented. Crowd boxes are not trained on.

    Args:
        index: images and boxes.
        transform: to the model's size.
        seed: of the augmentation.
        strong_until: epochs that begin with `augment_strongly`; 0: none does.
    """

    def __init__(
        self, index: DetectionIndex, transform: FinetuneTransform, seed: int = 0, *, strong_until: int = 0
    ) -> None:
        super().__init__(index, seed)
        self.transform, self.strong_until = transform, strong_until

    def __getitem__(self, key: tuple[int, int]) -> DetectionItem:
        epoch, i = key
        position, labelled = self._labelled(i)
        image, rng = labelled.image, sample_random(self.seed, epoch, i)
        if epoch < self.strong_until:
            side = self.transform.side
            labelled = augment_strongly(labelled, lambda other: self._labelled(other)[1], len(self), side, rng)
        sample = self.transform(labelled.image, labelled.boxes, labelled.labels, rng)
        height, width = sample.pixels.shape[:2]
        low, high = sample.boxes[:, :2], sample.boxes[:, 2:]
        boxes = np.concatenate([(low + high) / 2, high - low], axis=1) / np.asarray([width, height] * 2)
        return DetectionItem(
            image=channels_first(sample.pixels),
            boxes=torch.from_numpy(boxes.astype(np.float32)),
            labels=torch.from_numpy(sample.labels.astype(np.int64)),
            image_id=int(self.index.image_ids[position]),
            original_size=(image.height, image.width),
        )

    def _labelled(self, i: int) -> tuple[int, LabelledImage]:
        """The position that was read, and its image with the boxes to train on."""
        position, _, image = self._files.read(i)
        rows = self.index.box_slice(position)
        trained = ~self.index.crowd[rows]
        return position, LabelledImage(image, self.index.boxes[rows][trained], self.index.labels[rows][trained])


def collate_detection(items: Sequence[DetectionItem]) -> DetectionBatch:
    """Make one batch; images are zero-padded at the right and bottom to the largest height and width."""
    images, padding = pad_images([item.image for item in items])
    return DetectionBatch(
        images=images,
        padding=padding,
        targets=Targets.from_lists([item.boxes for item in items], [item.labels for item in items]),
        image_ids=tuple(item.image_id for item in items),
        original_sizes=torch.tensor([item.original_size for item in items], dtype=torch.int64),
    )


def channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    """[h, w, 3] -> [3, h, w]; a copy, because decoded pixels may be read-only."""
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def pad_images(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack images into [B, 3, H, W] uint8, with their padding [B, H, W], True = padded."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    canvas = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    padding = torch.ones(len(images), height, width, dtype=torch.bool)
    for i, image in enumerate(images):
        h, w = image.shape[1:]
        canvas[i, :, :h, :w] = image
        padding[i, :h, :w] = False
    return canvas, padding
