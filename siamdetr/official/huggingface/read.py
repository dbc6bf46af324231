"""Read checkpoints of Hugging Face's transformers as detectors of ours.

Every tensor is accounted for, and nothing but tensors is read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from siamdetr.errors import HubError, OfficialCheckpointError
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.model_file import ModelMetadata, save_model
from siamdetr.models.detector import Detector
from siamdetr.official.huggingface.architectures import ARCHITECTURES, Architecture
from siamdetr.official.huggingface.config import HuggingFaceConfig
from siamdetr.official.huggingface.names import import_rules, written_name
from siamdetr.official.huggingface.preprocessor import read_preprocessing
from siamdetr.official.huggingface.repository import (
    CONFIG,
    PREPROCESSOR,
    Repository,
    open_repository,
    read_json,
    read_tensors,
)
from siamdetr.official.placement import Coverage, distribute, fill

_log = logging.getLogger(__name__)

NO_NAME = "N/A"  # of an output that no class belongs to: COCO's category ids have gaps
OURS = "siamdetr"  # the key of config.json under which our export keeps what transformers has no field for


@dataclass(frozen=True)
class ImportedModel:
    """A detector in evaluation mode on the CPU, with its metadata and the account of its tensors."""

    detector: Detector
    metadata: ModelMetadata
    coverage: Coverage


def import_huggingface(source: str | Path) -> ImportedModel:
    """The detector of a Hugging Face checkpoint.

    Args:
        source: a folder of `save_pretrained`, `hf:ORG/NAME` or `hf:ORG/NAME@REVISION`.
    Raises:
        HubError: it is not there, cannot be fetched, or holds no safetensors.
        OfficialCheckpointError: an unsupported architecture, or tensors that do not fit config.json.
        WeightFileError: a damaged file.
    """
    repository = open_repository(source)
    values = _read_config(repository)
    architecture, config = _parse(values, repository)
    tensors = _canonical(read_tensors(repository), config)
    tensors = architecture.untie(tensors, config)
    head = tensors.get(architecture.class_head)
    if head is None:
        raise OfficialCheckpointError(
            f"{repository.name}: lacks the tensor '{architecture.class_head}', the class head; is it a "
            f"'{config.architecture.removesuffix('ForObjectDetection')}Model' without heads?"
        )
    settings = config.settings(num_classes=len(head) - config.softmax)
    if (values.get(OURS) or {}).get("column_positions"):
        settings = settings.model_copy(update={"column_positions": True})
    detector = Detector(settings)
    rules = import_rules(architecture.pairs(settings), keeps_counters=settings.train_batchnorm)
    used, left_aside, found = distribute(tensors, detector, rules)
    missing = fill(detector, found, why=_why_missing)
    _log.info("%s: %d tensors used, %d left aside", repository.name, len(used), len(left_aside))
    metadata = _metadata(repository, values, config, settings.num_classes)
    return ImportedModel(detector.eval(), metadata, Coverage(used, left_aside, missing, ()))


def convert_huggingface(
    source: str | Path, *, output: str | Path, class_names: Sequence[str] | None = None
) -> Coverage:
    """Write the detector of a Hugging Face checkpoint as a model file of ours.

    Args:
        source: as of `import_huggingface`.
        output: a .safetensors file, written atomically.
        class_names: one a class; None: those of config.json.
    Raises:
        HubError, OfficialCheckpointError, WeightFileError: as of `import_huggingface`.
        ValueError: another number of class names than classes.
    """
    imported = import_huggingface(source)
    metadata = imported.metadata
    if class_names is not None:
        metadata = metadata.model_copy(update={"class_names": tuple(class_names)})
    save_model(output, imported.detector, metadata)
    return imported.coverage


def _why_missing(name: str) -> str | None:
    """Why a checkpoint need not have a tensor of ours."""
    if name.endswith("num_batches_tracked"):
        return "a counter of batches, from 0"
    return "num_denoising is 0 there" if name == "learned_queries.labels.weight" else None


def _read_config(repository: Repository) -> dict[str, Any]:
    path = repository.folder / CONFIG
    if not path.is_file():
        raise HubError(f"{repository.name}: no {CONFIG} in it; expected a folder of transformers' `save_pretrained`")
    return read_json(path)


def _parse(values: Mapping[str, Any], repository: Repository) -> tuple[Architecture, HuggingFaceConfig]:
    kind, classes = values.get("model_type"), values.get("architectures") or []
    architecture = ARCHITECTURES.get(str(kind))
    if architecture is None or any(name != architecture.config.architecture for name in classes):
        raise OfficialCheckpointError(
            f"{repository.name}: {CONFIG} is of '{kind}' ({', '.join(classes) or 'no class named'}); expected one of "
            f"{', '.join(entry.config.architecture for entry in ARCHITECTURES.values())}"
        )
    try:
        config = architecture.config.model_validate(values)
    except ValidationError as error:
        raise OfficialCheckpointError(f"{repository.name}: {CONFIG}: {' '.join(str(error).split())[:400]}") from error
    if config.auxiliary_loss and config.model_type in ("detr", "table-transformer", "conditional_detr"):
        _log.warning(
            "%s: auxiliary_loss is true, with which transformers normalises the queries between layers; the published detector "
            "does not, nor does this one: its outputs differ from transformers' until that is set to false.",
            repository.name,
        )
    return architecture, config


def _canonical(tensors: Mapping[str, Tensor], config: HuggingFaceConfig) -> dict[str, Tensor]:
    """The tensors in float32 and under the names that transformers writes; a file may have newer ones."""
    return {
        written_name(name, config.model_type): tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def _metadata(
    repository: Repository, values: Mapping[str, Any], config: HuggingFaceConfig, num_classes: int
) -> ModelMetadata:
    kept = values.get(OURS) or {}
    at = f" at revision {repository.revision}" if repository.revision else ""
    come_from = (f"Hugging Face: {repository.name}{at}",) if at or not kept else ()
    return ModelMetadata(
        class_names=class_names(config.id2label or {}, num_classes, repository.name),
        category_ids=tuple(kept.get("category_ids", range(num_classes))),
        preprocessing=_preprocessing(repository, config),
        lineage=(*kept.get("lineage", ()), *come_from),
        metrics=kept.get("metrics", {}),
    )


def class_names(id2label: Mapping[int, str], num_classes: int, where: str) -> tuple[str, ...]:
    """The names of the outputs 0..C-1.

    An output without a name is "N/A"; if no output has a name, all are called by number.

    Raises:
        OfficialCheckpointError: there is a name for an output that does not exist.
    """
    strange = sorted(label for label in id2label if not 0 <= label < num_classes)
    if strange:
        raise OfficialCheckpointError(
            f"{where}: {CONFIG}: id2label names output {strange[0]} ('{id2label[strange[0]]}'), but the class head has "
            f"{num_classes} outputs, 0..{num_classes - 1}; correct id2label"
        )
    if not id2label:
        return tuple(f"class {label}" for label in range(num_classes))
    return tuple(id2label.get(label, NO_NAME) for label in range(num_classes))


def _preprocessing(repository: Repository, config: HuggingFaceConfig) -> PreprocessingSpec:
    path = repository.folder / PREPROCESSOR
    if path.is_file():
        return read_preprocessing(read_json(path), str(path))
    _log.warning("%s: no %s; taking the values of %s.", repository.name, PREPROCESSOR, config.processor)
    return read_preprocessing(config.default_preprocessing, config.processor)
