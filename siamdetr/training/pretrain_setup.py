"""What pretraining needs to know before it starts: the detector's class head, the regions, the images of the method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import SettingsError
from siamdetr.pretext import DETReg, Pretext
from siamdetr.pretext.common import pretext_settings
from siamdetr.pretext.datasets import RegionDataset, SiameseDataset, collate_regions, collate_views
from siamdetr.pretext.detreg import load_projection
from siamdetr.proposals.compute import ProposalStore, compute_proposals, open_proposals
from siamdetr.proposals.methods import Recipe
from siamdetr.settings.detector import DetectorSettings
from siamdetr.settings.pretext import SiameseSettings
from siamdetr.settings.training import PretrainSettings
from siamdetr.system.progress import Progress
from siamdetr.training.initial_weights import read_start, taken_over


def pretraining_detector(settings: PretrainSettings) -> DetectorSettings:
    """The detector with the class head that the method trains."""
    classifier = settings.detreg.classifier if settings.method == "detreg" else "softmax"
    return pretext_settings(settings.detector, classifier)


def resolved_pretraining(settings: PretrainSettings) -> PretrainSettings:
    """The settings with what the starting model decides: whatever was not said about the detector is as in that model.

    Raises:
        CheckpointError, HubError, OfficialCheckpointError: `init` cannot be read.
    """
    if settings.init is not None:
        base = read_start(settings.init)
        settings = settings.model_copy(update=taken_over(settings, base))
    return settings.model_copy(update={"detector": pretraining_detector(settings)})


def pretraining_data(
    settings: PretrainSettings, index: DetectionIndex, proposals: ProposalStore | None
) -> tuple[SiameseDataset | RegionDataset, Callable[[list[Any]], Any]]:
    """The method's samples, and how they make its batch."""
    chosen = settings.of_method
    if isinstance(chosen, SiameseSettings):
        return SiameseDataset(index, proposals, chosen, settings.seed), collate_views
    return RegionDataset(index, proposals, chosen, settings.seed), collate_regions


def stored_proposals(
    settings: PretrainSettings, run_folder: Path, index: DetectionIndex, progress: Progress
) -> ProposalStore | None:
    """Those that were given; else computed once, and kept beside the run for the next one. None: the method draws random regions.

    Raises:
        DataError: a given file cannot be used, or was made for other images.
    """
    if settings.data.proposals:
        return open_proposals(index, settings.data.proposals, progress=progress)
    kind = settings.of_method.proposals
    if kind == "random":
        return None
    path = run_folder.parent / "proposals" / f"{kind}.arrow"
    return compute_proposals(index, path, recipe=Recipe(kind), progress=progress)


def fill_pretext(pretext: Pretext, settings: PretrainSettings) -> None:
    """Load what a method needs beside the backbone: SwAV's projection, where DETReg is asked for it.

    Raises:
        SettingsError: there is no file that it could be in.
    """
    if not isinstance(pretext, DETReg) or pretext.projection is None:
        return
    if settings.backbone_weights in ("imagenet", "none"):
        raise SettingsError(
            f"detreg.embedding=projection needs SwAV's own file as backbone_weights, got '{settings.backbone_weights}'; give "
            "the file, or set detreg.embedding=c3"
        )
    load_projection(pretext, settings.backbone_weights)
