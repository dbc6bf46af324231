"""Figures of a pretraining run's proposals for log and report: how they were found, and their recall."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import UnreadableImageError
from siamdetr.files import PROPOSALS_FILE
from siamdetr.images.open import content_key, read_bytes
from siamdetr.pretext.datasets import UnlabelledDataset
from siamdetr.proposals.recall import ProposalRecall, proposal_recall
from siamdetr.proposals.store import ProposalStore
from siamdetr.system.atomic_file import atomic_text

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProposalFigures:
    """Figures of a store of proposals.

    Attributes:
        recipe: how they were computed.
        num_images, num_boxes: in it.
        sharpened, centred: images whose boxes were found only after sharpening, and images that have the centred box.
        recall: on `num_judged` labelled images; None: there were none.
    """

    recipe: str
    num_images: int
    num_boxes: int
    sharpened: int
    centred: int
    num_judged: int = 0
    recall: ProposalRecall | None = None


def measure_proposals(store: ProposalStore | None, labelled: DetectionIndex | None) -> ProposalFigures | None:
    """Measure a store, and log its figures; None if regions are random.

    Args:
        store: of the run.
        labelled: images with boxes; those that the store has are used.
    """
    if store is None:
        return None
    known = None if labelled is None else labelled.subset([i for i in range(len(labelled)) if _has(store, labelled, i)])
    if known is None or len(known) == 0:
        return ProposalFigures(store.recipe, len(store), store.num_boxes, *store.fallback_counts())
    recall = proposal_recall(known, store)
    _log.info(
        "Proposals: average recall %s (IoU .5:.95, on %d labelled images)",
        ", ".join(f"{value:.3f} of the first {count}" for count, value in recall.average.items()),
        len(known),
    )
    return ProposalFigures(store.recipe, len(store), store.num_boxes, *store.fallback_counts(), len(known), recall)


def save_proposal_figures(folder: Path, figures: ProposalFigures | None, dataset: UnlabelledDataset[Any]) -> None:
    """Write the figures into the run folder, with the counts of the data set.

    Warn of images without proposals.
    """
    if dataset.num_unreadable:
        _log.warning("%d images could not be read; others took their places", dataset.num_unreadable)
    if figures is None:
        return
    lacking = dataset.num_without_proposals
    if lacking:
        _log.warning("%d images had no stored proposals: each got EdgeBoxes whenever it was read", lacking)
    rows: list[tuple[str, Any]] = [
        ("images with proposals", figures.num_images),
        ("boxes an image", figures.num_boxes / max(1, figures.num_images)),
        ("images that found boxes only after sharpening", figures.sharpened),
        ("images that have the centred box", figures.centred),
        ("images without stored proposals, which got EdgeBoxes whenever they were read", lacking),
        ("images that could not be read", dataset.num_unreadable),
    ]
    if figures.recall is not None:
        rows += [
            (f"average recall of the first {count}, IoU .5:.95, on {figures.num_judged} labelled images", value)
            for count, value in figures.recall.average.items()
        ]
    text = json.dumps({"recipe": figures.recipe, "rows": rows}, indent=1)
    atomic_text(folder / PROPOSALS_FILE, text)


def _has(store: ProposalStore, index: DetectionIndex, i: int) -> bool:
    try:
        return store.find(content_key(read_bytes(index.path(i)))) is not None
    except UnreadableImageError:
        return False
