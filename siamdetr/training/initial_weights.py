"""Initial weights and their normalization: all that fits in a pretrained run or model file.

Other parameters keep random values, and the log names them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from siamdetr.errors import CheckpointError
from siamdetr.images.preprocessing import IMAGENET, Normalization
from siamdetr.model_file import ModelMetadata, load_model, read_metadata
from siamdetr.models.backbone.normalization import backbone_normalization
from siamdetr.models.backbone.weights import load_backbone_weights
from siamdetr.models.detector import Detector
from siamdetr.official.huggingface.read import import_huggingface
from siamdetr.official.huggingface.repository import is_huggingface
from siamdetr.settings.detector import DetectorSettings
from siamdetr.settings.training import RunSettings
from siamdetr.training.checkpoints.checkpoint_file import NORMALIZATION, STATE
from siamdetr.training.run_folder import RunFolder

_log = logging.getLogger(__name__)

# Depend on the classes (with denoising there is a content for each), and on the number of queries.
_OF_CLASSES, _QUERIES = ("class_head", "learned_queries.labels"), "learned_queries"


@dataclass(frozen=True)
class Start:
    """The origin of a detector's weights."""

    loaded: int
    fresh: tuple[str, ...]  # modules that keep their random weights, such as "class_head" or "learned_queries.labels"
    lineage: tuple[str, ...]


@dataclass(frozen=True)
class StartSettings:
    """Settings and metadata of a starting model."""

    detector: DetectorSettings
    metadata: ModelMetadata
    from_huggingface: bool


def read_start(source: str) -> StartSettings:
    """Settings and metadata of the model that a run starts from.

    Raises:
        CheckpointError, HubError, OfficialCheckpointError: there is no such model, or it cannot be read.
    """
    if is_huggingface(source):
        imported = import_huggingface(source)
        return StartSettings(imported.detector.settings, imported.metadata, from_huggingface=True)
    detector, metadata = read_metadata(source)
    return StartSettings(detector, metadata, from_huggingface=False)


def taken_over(detector: DetectorSettings, base: StartSettings) -> DetectorSettings:
    """The detector settings of a run with `init`: settings that were not given are those of that model."""
    return base.detector.model_copy(update={name: getattr(detector, name) for name in detector.model_fields_set})


def start(detector: Detector, settings: RunSettings, class_names: tuple[str, ...], *, resumed: bool) -> Start:
    """Fill a new detector: from `init`, else its backbone from `backbone_weights`.

    A resumed run has its own weights.
    """
    if settings.init is None:
        if not resumed:
            fill_backbone(detector, settings)
        return Start(loaded=0, fresh=(), lineage=())
    metadata = read_start(settings.init).metadata
    if resumed:
        return Start(loaded=0, fresh=(), lineage=metadata.lineage)
    found = load_start(detector, class_names, settings.init)
    _log.info(
        "Starting from %s: %d tensors taken over; %s. Images are normalised as there: %s.",
        settings.init,
        found.loaded,
        f"starting afresh: {', '.join(found.fresh)}" if found.fresh else "nothing starts afresh",
        metadata.preprocessing.normalization,
    )
    return found


def fill_backbone(detector: Detector, settings: RunSettings) -> None:
    """Load the backbone's weights as the settings say."""
    if settings.backbone_weights != "none":
        load_backbone_weights(detector.backbone, settings.backbone_weights)
    else:
        _log.warning("The backbone starts from random weights.")


def load_start(detector: Detector, class_names: tuple[str, ...], path: str | Path) -> Start:
    """Copy into `detector` every tensor of the model at `path` that fits.

    The class head (and label contents) are taken over only where the classes are the same; they and the query
    embeddings (whose number may differ) may keep their random values. Any other difference is an error, since it would
    silently lose the pretraining.

    Raises:
        CheckpointError: no readable model there, or its body is not this detector's; the text names settings that
            differ.
        HubError, OfficialCheckpointError: the same of a Hugging Face checkpoint.
    """
    source, metadata = _open(path)
    theirs, ours = source.state_dict(), detector.state_dict()
    fits = {name: tensor for name, tensor in theirs.items() if name in ours and ours[name].shape == tensor.shape}
    same_classes = not metadata.class_agnostic and metadata.class_names == class_names
    same_classes &= source.settings.classifier == detector.settings.classifier
    if not same_classes:
        fits = {name: tensor for name, tensor in fits.items() if not name.startswith(_OF_CLASSES)}
    left_out = sorted(name for name in {*ours, *theirs} if name not in fits)
    strange = [name for name in left_out if not name.startswith((*_OF_CLASSES, _QUERIES))]
    if strange:
        raise CheckpointError(_misfit(path, source, detector, strange))
    detector.load_state_dict(fits, strict=False)
    fresh = tuple(sorted({_module(name) for name in left_out if name in ours}))
    return Start(loaded=len(fits), fresh=fresh, lineage=metadata.lineage)


def run_normalization(settings: RunSettings, run: RunFolder) -> Normalization:
    """The normalization that belongs to the weights a run has or starts from.

    A resumed run keeps its normalization; older checkpoints, which do not store it, used ImageNet's. A run with `init`
    takes that of the model it starts from. A run whose `backbone_weights` are a model file of ours takes that file's.
    Else it is the backbone's.
    """
    if run.content is not None:
        stored = run.content[STATE].get(NORMALIZATION)
        return IMAGENET if stored is None else Normalization(mean=tuple(stored[0]), std=tuple(stored[1]))
    if settings.init is not None:
        return read_start(settings.init).metadata.preprocessing.normalization
    return _of_weight_file(settings.backbone_weights) or backbone_normalization(settings.detector.backbone)


def _of_weight_file(path: str) -> Normalization | None:
    """The normalization of a model file of ours; None: a file of another program, which stores none."""
    if not path.endswith(".safetensors"):
        return None
    try:
        return read_metadata(path)[1].preprocessing.normalization
    except CheckpointError:
        return None


def _open(source: str | Path) -> tuple[Detector, ModelMetadata]:
    if not is_huggingface(source):
        return load_model(source)
    imported = import_huggingface(source)
    return imported.detector, imported.metadata


def _module(name: str) -> str:
    """The module of a tensor; for the queries, the part of them, because not all depend on the classes."""
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] == _QUERIES else 1])


def _misfit(path: str | Path, source: Detector, detector: Detector, names: list[str]) -> str:
    theirs, ours = source.settings.model_dump(), detector.settings.model_dump()
    differing = [f"{key}: {theirs[key]} there, {ours[key]} here" for key in ours if theirs.get(key) != ours[key]]
    settings = "; ".join(differing) or "none of the settings differ"
    return (
        f"{path}: does not fit this detector ({len(names)} tensors, such as {names[0]}); {settings}. Use its settings"
    )
