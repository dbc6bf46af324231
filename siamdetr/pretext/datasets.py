"""Unlabelled data sets for pretraining, whose samples are functions of (seed, epoch, index) alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from siamdetr.data.dataset import ImageDataset, Sample, channels_first, logger, pad_images
from siamdetr.data.index import DetectionIndex
from siamdetr.images import opencv as cv2
from siamdetr.images.open import content_key
from siamdetr.images.randomness import Random, sample_random
from siamdetr.pretext.batches import RegionBatch, ViewBatch
from siamdetr.pretext.regions import OneViewSettings, RegionSample, make_regions
from siamdetr.pretext.views import ViewSample, largest_side, make_views
from siamdetr.proposals.methods import propose
from siamdetr.settings.pretext import SiameseSettings
from siamdetr.structures.targets import region_targets

if TYPE_CHECKING:
    from siamdetr.proposals.store import ProposalStore


class UnlabelledDataset(ImageDataset[Sample]):
    """Images with their proposals.

    EdgeBoxes are computed for an image that is not in the store, such as a file that has changed.

    Such images are counted once, in all workers together, like unreadable ones.
    """

    def __init__(self, index: DetectionIndex, proposals: ProposalStore | None, *, at_least: int, seed: int) -> None:
        super().__init__(index, seed)
        cv2.setNumThreads(0)  # its thread pool does not survive the fork of workers, which are the parallelism
        self.proposals = proposals
        self._at_least = at_least  # pixels that must be left of a side when a JPEG is decoded smaller
        self._not_stored = torch.zeros(len(index), dtype=torch.bool)
        self._not_stored.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def num_without_proposals(self) -> int:
        """Images read so far, in all workers, that the store lacks; 0 where there is no store."""
        return int(self._not_stored.sum())

    def _read(self, key: tuple[int, int]) -> tuple[Image.Image, NDArray[np.float32] | None, Random]:
        """The image of (epoch, i), its proposals, and the sample's randomness.

        Proposals are [n, 4] (x0, y0, x1, y1) fractions, best first; None: random regions are used.
        """
        epoch, i = key
        position, data, image = self._files.read(i, self._at_least)
        boxes = None
        if self.proposals is not None:
            boxes = self.proposals.fractions(content_key(data))
            if boxes is None:
                self._note_not_stored(position, self.proposals)
                boxes = propose(image).boxes
        return image, boxes, sample_random(self.seed, epoch, i)

    def _note_not_stored(self, position: int, store: ProposalStore) -> None:
        is_first = not self._not_stored.any()
        self._not_stored[position] = True
        if is_first:
            logger.warning(
                "%s: has no proposals in %s (%s); it gets EdgeBoxes whenever it is read. Others that are missing are only counted",
                self.index.path(position), ", ".join(map(str, store.paths)), store.recipe.partition(" ")[0],
            )  # fmt: skip


class SiameseDataset(UnlabelledDataset[ViewSample]):
    """Unlabelled images as pairs of views with common regions.

    Args:
        index: images; labels are ignored.
        proposals: stored region proposals, or None for random regions.
        settings: of the views.
        seed: of the augmentation.
    """

    def __init__(
        self, index: DetectionIndex, proposals: ProposalStore | None, settings: SiameseSettings, seed: int = 0
    ) -> None:
        # Enough pixels for a part of half its side.
        super().__init__(index, proposals, at_least=2 * largest_side(settings), seed=seed)
        self.settings = settings

    def __getitem__(self, key: tuple[int, int]) -> ViewSample:
        image, boxes, random = self._read(key)
        return make_views(image, boxes, self.settings, random)


class RegionDataset(UnlabelledDataset[RegionSample]):
    """Unlabelled images with the regions to detect in them (UP-DETR, DETReg).

    Args:
        index: images; labels are ignored.
        proposals: stored region proposals, or None for random regions.
        settings: of the images and regions.
        seed: of the augmentation.
    """

    def __init__(
        self, index: DetectionIndex, proposals: ProposalStore | None, settings: OneViewSettings, seed: int = 0
    ) -> None:
        parts = 2 if settings.augment == "detr" else 1  # as above, where parts are cut out
        super().__init__(index, proposals, at_least=parts * largest_side(settings), seed=seed)
        self.settings = settings

    def __getitem__(self, key: tuple[int, int]) -> RegionSample:
        image, boxes, random = self._read(key)
        return make_regions(image, boxes, self.settings, random)


def collate_views(items: Sequence[ViewSample]) -> ViewBatch:
    """One batch: view 1 of all samples, then view 2 of all, zero-padded like detection batches."""
    views = [item.images[which] for which in range(2) for item in items]
    images, padding = pad_images([channels_first(view) for view in views])
    crops = np.stack([item.crops[which] for which in range(2) for item in items])  # [2B, P, C, C, 3]
    return ViewBatch(
        images=images,
        padding=padding,
        boxes=torch.from_numpy(np.stack([item.boxes[which] for which in range(2) for item in items])),
        sizes=torch.tensor([view.shape[:2] for view in views], dtype=torch.int64),
        crops=torch.from_numpy(crops).permute(0, 1, 4, 2, 3).contiguous(),
    )


def collate_regions(items: Sequence[RegionSample]) -> RegionBatch:
    """One batch, zero-padded like detection batches; all regions are labelled "an object"."""
    images, padding = pad_images([channels_first(item.image) for item in items])
    counts = [len(item.boxes) for item in items]
    return RegionBatch(
        images=images,
        padding=padding,
        targets=region_targets(torch.from_numpy(np.concatenate([item.boxes for item in items])), counts),
        crops=torch.from_numpy(np.concatenate([item.crops for item in items])).permute(0, 3, 1, 2).contiguous(),
    )
