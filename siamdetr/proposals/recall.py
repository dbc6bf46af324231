"""Recall of region proposals on labelled images: an upper bound on the objects that pretraining sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siamdetr.data.index import DetectionIndex, require_labels
from siamdetr.errors import UnreadableImageError
from siamdetr.images.open import content_key, read_bytes
from siamdetr.proposals.methods import pairwise_overlap
from siamdetr.proposals.store import ProposalStore
from siamdetr.system.progress import Progress

COUNTS = (10, 30, 100)
THRESHOLDS: NDArray[np.float32] = np.linspace(0.5, 0.95, 10, dtype=np.float32)


@dataclass(frozen=True)
class ProposalRecall:
    """Recall, 0..1, by the number of proposals per image.

    Attributes:
        average: {count: mean over the IoU thresholds .50:.05:.95} ("AR@count").
        at_50: {count: at IoU .5}.
        num_boxes: objects, without crowds.
        missing: images that the store lacks; their objects count as not covered.
    """

    average: dict[int, float]
    at_50: dict[int, float]
    num_boxes: int
    missing: int


def proposal_recall(
    index: DetectionIndex,
    store: ProposalStore,
    *,
    counts: Sequence[int] = COUNTS,
    progress: Progress | None = None,
) -> ProposalRecall:
    """Recall of stored proposals on labelled images.

    An object is covered if one of the first proposals has enough IoU with it. As in the EdgeBoxes paper a proposal may
    cover several objects, unlike a detection in COCO's AR.

    Args:
        index: images and truth; it must have boxes.
        store: of these images.
        counts: numbers of proposals, best first.
        progress: called with (images done, images in all).
    Raises:
        DataError: the data has no labelled box.
    """
    require_labels(index)
    best: dict[int, list[NDArray[np.float32]]] = {count: [] for count in counts}
    missing = 0
    for i in range(len(index)):
        truth = index.boxes_of(i)[~index.crowd[index.box_slice(i)]]
        found = _stored(index, store, i)
        missing += found is None
        overlaps = np.zeros((len(truth), 0), np.float32) if found is None else pairwise_overlap(truth, found)
        for count in counts:
            best[count].append(overlaps[:, :count].max(axis=1, initial=0))
        if progress is not None:
            progress(i + 1, len(index))
    covered = {count: np.concatenate(parts) for count, parts in best.items()}
    return ProposalRecall(
        average={count: float((values[:, None] >= THRESHOLDS).mean()) for count, values in covered.items()},
        at_50={count: float((values >= THRESHOLDS[0]).mean()) for count, values in covered.items()},
        num_boxes=int((~index.crowd).sum()),
        missing=missing,
    )


def _stored(index: DetectionIndex, store: ProposalStore, i: int) -> NDArray[np.float32] | None:
    try:
        return store.boxes(content_key(read_bytes(index.path(i))))
    except UnreadableImageError:
        return None
