"""Starting weights and their normalization: from a pretrained run or model file, what fits; the rest starts afresh and is named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from siamdetr.errors import CheckpointError
from siamdetr.images.preprocessing import IMAGENET, Normalization
from siamdetr.model_file import load_model, read_metadata
from siamdetr.models.backbone.normalization import backbone_normalization
from siamdetr.models.detector import Detector
from siamdetr.settings.training import FinetuneSettings, RunSettings
from siamdetr.training.checkpoint_io import NORMALIZATION, STATE
from siamdetr.training.run_folder import RunFolder

# Depend on the classes (with denoising there is a content for each), and on the number of queries.
_OF_CLASSES, _QUERIES = ("class_head", "learned_queries.labels"), "learned_queries"


@dataclass(frozen=True)
class Start:
    """Where a detector's weights came from."""

    loaded: int
    fresh: tuple[str, ...]  # modules that start afresh, such as "class_head" or "learned_queries.labels"
    lineage: tuple[str, ...]


def load_start(detector: Detector, class_names: tuple[str, ...], path: str | Path) -> Start:
    """Copy into `detector` every tensor of the model at `path` that fits.

    The class head (and label contents) are taken over only where the classes are the same; they and the query embeddings (whose number may differ)
    may start afresh. Anything else that differs is an error, for it would silently lose the pretraining.

    Raises:
        CheckpointError: no readable model there, or its body is not this detector's; the text names settings that differ.
    """
    source, metadata = load_model(path)
    theirs, ours = source.state_dict(), detector.state_dict()
    fits = {name: tensor for name, tensor in theirs.items() if name in ours and ours[name].shape == tensor.shape}
    same_classes = metadata.class_names == class_names and source.settings.classifier == detector.settings.classifier
    if not same_classes:
        fits = {name: tensor for name, tensor in fits.items() if not name.startswith(_OF_CLASSES)}
    left_out = sorted(name for name in {*ours, *theirs} if name not in fits)
    strange = [name for name in left_out if not name.startswith((*_OF_CLASSES, _QUERIES))]
    if strange:
        raise CheckpointError(_misfit(Path(path), source, detector, strange))
    detector.load_state_dict(fits, strict=False)
    fresh = tuple(sorted({_module(name) for name in left_out if name in ours}))
    return Start(loaded=len(fits), fresh=fresh, lineage=metadata.lineage)


def run_normalization(settings: RunSettings, run: RunFolder) -> Normalization:
    """The normalization that belongs to the weights a run has or starts from.

    A resumed run keeps its own; checkpoints from before it was stored used ImageNet's figures. Finetuning with `init` takes that of
    the model it starts from. A run whose `backbone_weights` are a model file of ours takes that file's. Else it is the backbone's.
    """
    if run.content is not None:
        stored = run.content[STATE].get(NORMALIZATION)
        return IMAGENET if stored is None else Normalization(mean=tuple(stored[0]), std=tuple(stored[1]))
    if isinstance(settings, FinetuneSettings) and settings.init is not None:
        return read_metadata(settings.init)[1].preprocessing.normalization
    return _of_weight_file(settings.backbone_weights) or backbone_normalization(settings.detector.backbone)


def _of_weight_file(path: str) -> Normalization | None:
    """Of a model file of ours; None: weights of another program, which do not say."""
    if not path.endswith(".safetensors"):
        return None
    try:
        return read_metadata(path)[1].preprocessing.normalization
    except CheckpointError:
        return None


def _module(name: str) -> str:
    """The module of a tensor; of the queries their part, since only some of them depend on the classes."""
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] == _QUERIES else 1])


def _misfit(path: Path, source: Detector, detector: Detector, names: list[str]) -> str:
    theirs, ours = source.settings.model_dump(), detector.settings.model_dump()
    differing = [f"{key}: {theirs[key]} there, {ours[key]} here" for key in ours if theirs.get(key) != ours[key]]
    settings = "; ".join(differing) or "none of the settings differ"
    return (
        f"{path}: does not fit this detector ({len(names)} tensors, such as {names[0]}); {settings}. Use its settings"
    )
