"""What pretraining needs to know before it starts: the detector's class head, and the regions."""

from __future__ import annotations

from pathlib import Path

from siamdetr.data.index import DetectionIndex
from siamdetr.pretext.common import pretext_settings
from siamdetr.pretext.run_settings import PretrainSettings
from siamdetr.proposals.compute import ProposalStore, compute_proposals, open_proposals
from siamdetr.proposals.methods import Recipe
from siamdetr.settings.detector import DetectorSettings
from siamdetr.system.progress import Progress
from siamdetr.training.initial_weights import read_start, taken_over


def pretraining_detector(settings: PretrainSettings) -> DetectorSettings:
    """The detector with the class head that the method trains."""
    return pretext_settings(settings.detector, settings.of_method.class_loss)


def resolved_pretraining(settings: PretrainSettings) -> PretrainSettings:
    """The settings with what the starting model decides: with `init`, whatever was not said about the detector is as in it.

    Raises:
        CheckpointError, HubError, OfficialCheckpointError: `init` cannot be read.
    """
    if settings.init is not None:
        detector = taken_over(settings.detector, read_start(settings.init))
        settings = settings.model_copy(update={"detector": detector})
    return settings.model_copy(update={"detector": pretraining_detector(settings)})


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
