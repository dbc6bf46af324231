"""The registry of pretexts: everything in which they differ.

A new pretext is a file and an entry here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from siamdetr.data.index import DetectionIndex
from siamdetr.models.detector import Detector
from siamdetr.pretext.batches import PretextBatch
from siamdetr.pretext.cached_views import collate_cached
from siamdetr.pretext.common import Pretext
from siamdetr.pretext.datasets import (
    RegionDataset,
    SiameseDataset,
    UnlabelledDataset,
    collate_regions,
    collate_views,
)
from siamdetr.pretext.detreg import DETReg
from siamdetr.pretext.siamese import SiameseDETR
from siamdetr.pretext.updetr import UPDETR
from siamdetr.pretext.view_cache import CacheRequest, cached_views
from siamdetr.settings.pretext import DETRegSettings, PretextSettings, SiameseSettings, UPDETRSettings
from siamdetr.system.progress import Progress

if TYPE_CHECKING:
    from siamdetr.proposals.store import ProposalStore

__all__ = ["PRETEXTS", "PretextEntry", "name_of"]


@dataclass(frozen=True)
class PretextEntry:
    """The entry of a pretext, for command line, settings, training, report and study.

    Its key in `PRETEXTS` is its name in settings.

    Attributes:
        name: in reports and plots, such as "Siamese DETR".
        colour: in plots, "#rrggbb".
        settings: their class; they stand under the key of the entry. `settings.proposals` names the source of regions.
        build: (detector, settings) -> the module that holds the detector.
        dataset: (images, stored proposals or None for random regions, settings, seed) -> samples by (epoch, position).
        collate: samples -> a batch.
        shown: caption of the pictures of its samples, in the run's report.
        cache, collate_cached: compute and batch stored features of fixed samples, for `settings.cached_samples` above
            0; None: the pretext has no cache.
    """

    name: str
    colour: str
    settings: type[PretextSettings]
    build: Callable[[Detector, Any], Pretext]
    dataset: Callable[[DetectionIndex, ProposalStore | None, Any, int], UnlabelledDataset[Any]]
    collate: Callable[[list[Any]], PretextBatch]
    shown: str = "regions to be found in their image"
    cache: Callable[[Any, CacheRequest, Progress], Dataset[Any] | None] | None = None
    collate_cached: Callable[[list[Any]], PretextBatch] | None = None


PRETEXTS: dict[str, PretextEntry] = {
    "siamese": PretextEntry(
        name="Siamese DETR",
        colour="#2f7ed8",
        settings=SiameseSettings,
        build=SiameseDETR,
        dataset=SiameseDataset,
        collate=collate_views,
        shown="two views of an image, the same regions joined",
        cache=cached_views,
        collate_cached=collate_cached,
    ),
    "updetr": PretextEntry(
        name="UP-DETR",
        colour="#e4572e",
        settings=UPDETRSettings,
        build=UPDETR,
        dataset=RegionDataset,
        collate=collate_regions,
    ),
    "detreg": PretextEntry(
        name="DETReg",
        colour="#2a9d6f",
        settings=DETRegSettings,
        build=DETReg,
        dataset=RegionDataset,
        collate=collate_regions,
    ),
}


def name_of(method: str) -> str:
    """The method's name in reports; the key itself if this version does not know the method."""
    return PRETEXTS[method].name if method in PRETEXTS else method
