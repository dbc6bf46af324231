"""Resolve the settings of pretraining: class head, regions and samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from siamdetr.data.index import DetectionIndex
from siamdetr.images.preprocessing import Normalization
from siamdetr.models.backbone.body import Backbone
from siamdetr.models.detector import Detector
from siamdetr.pretext.batches import PretextBatch
from siamdetr.pretext.common import FrozenTeacher, pretext_settings
from siamdetr.pretext.datasets import UnlabelledDataset
from siamdetr.pretext.registry import PRETEXTS
from siamdetr.pretext.run_settings import PretrainSettings
from siamdetr.pretext.view_cache import CacheRequest
from siamdetr.proposals.compute import ProposalStore, compute_proposals, open_proposals
from siamdetr.proposals.methods import Recipe
from siamdetr.settings.detector import DetectorSettings
from siamdetr.system.progress import Progress
from siamdetr.training.initial_weights import read_start, taken_over
from siamdetr.training.run_folder import RunFolder
from siamdetr.training.trainer import run_device


def pretraining_detector(settings: PretrainSettings) -> DetectorSettings:
    """The detector with the class head that the method trains."""
    return pretext_settings(settings.detector, settings.of_method.class_loss)


def resolved_pretraining(settings: PretrainSettings) -> PretrainSettings:
    """Complete the settings from the starting model.

    With `init`, settings of the detector that were not given are those of that model.

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
    """Open the given proposals, or compute them once and keep them beside the run for the next one.

    None: the method draws random regions.

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


def training_samples(
    dataset: UnlabelledDataset[Any],
    settings: PretrainSettings,
    run: RunFolder,
    detector: Detector,
    normalization: Normalization,
    progress: Progress,
) -> tuple[Dataset[Any], Callable[[list[Any]], PretextBatch]]:
    """The samples of training, and the function that batches them.

    Samples come from the data set, or from stored features of fixed samples beside the run.

    Raises:
        DataError: the features stored there have other sources.
    """
    entry = PRETEXTS[settings.method]
    if not settings.of_method.cached_samples or entry.cache is None or entry.collate_cached is None:
        return dataset, entry.collate
    device = run_device(settings)
    backbone = copy.deepcopy(detector.backbone)
    if run.content is not None:
        _load_backbone(backbone, run.content["state_dict"])
    teacher = FrozenTeacher(backbone.to(device))
    request = CacheRequest(run.path.parent / "views", teacher, device, normalization, settings.workers)
    found = entry.cache(dataset, request, progress)
    return (dataset, entry.collate) if found is None else (found, entry.collate_cached)


def _load_backbone(backbone: Backbone, state: Mapping[str, Tensor]) -> None:
    """The backbone of a checkpoint's pretext."""
    start = "pretext.detector.backbone."
    backbone.load_state_dict(
        {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
    )
