"""Checkpoints of the official repositories.

Read without running code, checked to the last tensor, and converted.

A family is one entry of `siamdetr.official.families.IMPORTERS`. `load_criterion` gives the matching losses.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from siamdetr.errors import OfficialCheckpointError, WeightFileError
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.model_file import ModelMetadata, save_model
from siamdetr.models.backbone.normalization import backbone_normalization
from siamdetr.models.backbone.weight_files import read_weight_file, unwrap_state_dict
from siamdetr.models.detector import Detector
from siamdetr.official.families import IMPORTERS, Module, looks_like
from siamdetr.official.losses import load_criterion
from siamdetr.official.placement import Coverage, distribute, fill
from siamdetr.pretext.common import PRETEXT_CLASSES

__all__ = [
    "IMPORTERS",
    "Coverage",
    "Imported",
    "OfficialCheckpointError",
    "OfficialFile",
    "WeightFileError",
    "convert_file",
    "import_official",
    "load_criterion",
    "load_official",
    "looks_like",
    "read_official_file",
]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Imported:
    """A module with a checkpoint's weights, and their coverage."""

    module: Module
    coverage: Coverage


@dataclass(frozen=True)
class OfficialFile:
    """The content of a checkpoint file."""

    state_dict: Mapping[str, Tensor]
    arguments: Mapping[str, Any]  # the options of its run, if the file has them


def load_official(
    state_dict: Mapping[str, Tensor], *, family: str, arguments: Mapping[str, Any] | argparse.Namespace
) -> Module:
    """A detector or pretext with the weights of an official checkpoint, all of them accounted for.

    Args:
        state_dict: official names; `module.` of data-parallel training is stripped, half precision becomes float32.
        family: a key of `IMPORTERS`.
        arguments: official options. Those that do not concern the modules are ignored and logged. Missing ones are
            inferred from the tensors where possible, and otherwise have the official default.
    Raises:
        OfficialCheckpointError: unknown or wrong family, a tensor without counterpart, a parameter without tensor, or
            arguments that contradict tensors.
    """
    return import_official(state_dict, family=family, arguments=arguments).module


def import_official(
    state_dict: Mapping[str, Tensor], *, family: str, arguments: Mapping[str, Any] | argparse.Namespace
) -> Imported:
    """`load_official` together with its `Coverage`."""
    if family not in IMPORTERS:
        raise OfficialCheckpointError(f"no family '{family}'; there are: {', '.join(IMPORTERS)}")
    importer = IMPORTERS[family]
    options = vars(arguments) if isinstance(arguments, argparse.Namespace) else dict(arguments)
    tensors = _plain(state_dict)
    _check_family(tensors, family)
    module = importer.build(tensors, options)
    used, left_aside, values = distribute(tensors, module, importer.rules(module))
    missing = fill(module, values, why=lambda name: importer.may_miss(tensors, name))
    ignored = tuple(sorted(name for name in options if name not in importer.options))
    coverage = Coverage(used, left_aside, missing, ignored)
    _logger.info(
        "%s: %d tensors used, %d left aside, %d of ours not in the file, options ignored: %s",
        family,
        len(used),
        len(left_aside),
        len(missing),
        ", ".join(ignored) or "none",
    )
    return Imported(module, coverage)


def read_official_file(path: str | Path) -> OfficialFile:
    """Read a checkpoint file without running anything in it.

    Raises:
        WeightFileError: missing, truncated, no weight file, or refused because it holds more than tensors and options.
    """
    content = read_weight_file(path)
    options = content.get("args")
    arguments = vars(options) if isinstance(options, argparse.Namespace) else options
    return OfficialFile(
        state_dict=unwrap_state_dict(content, str(path)),
        arguments=arguments if isinstance(arguments, Mapping) else {},
    )


def convert_file(
    path: str | Path,
    *,
    family: str,
    arguments: Mapping[str, Any] | None = None,
    output: str | Path,
    class_names: Sequence[str] | None = None,
) -> Coverage:
    """Write the detector of an official checkpoint file as a model file of ours.

    Args:
        path: the official file.
        family: a key of `IMPORTERS`. Of a pretext the detector is written, with the class head of pretraining.
        arguments: official options; they override those in the file.
        output: a .safetensors file, written atomically.
        class_names: one per class; without them classes are called "class 0", "class 1", ... The official code uses a
            data set's category ids as labels, so ids are 0, 1, ...
    Raises:
        WeightFileError, OfficialCheckpointError: see `read_official_file` and `load_official`.
        ValueError: another number of class names than classes.
    """
    file = read_official_file(path)
    imported = import_official(file.state_dict, family=family, arguments={**file.arguments, **(arguments or {})})
    detector = imported.module if isinstance(imported.module, Detector) else imported.module.detector
    labels = range(detector.settings.num_classes)
    if class_names is None:
        of_pretext = not isinstance(imported.module, Detector) and len(labels) == PRETEXT_CLASSES
        class_names = ("nothing", "object") if of_pretext else [f"class {label}" for label in labels]
    if len(class_names) != len(labels):
        raise ValueError(f"{path}: expected {len(labels)} class names, got {len(class_names)}")
    size = IMPORTERS[family].image_size
    preprocessing = PreprocessingSpec() if size is None else PreprocessingSpec.from_size(size)
    metadata = ModelMetadata(
        class_names=tuple(class_names),
        category_ids=tuple(labels),
        preprocessing=preprocessing.normalized_by(backbone_normalization(detector.settings.backbone)),
        lineage=(f"converted from the official {family} checkpoint {Path(path).name}",),
    )
    save_model(output, detector, metadata)
    return imported.coverage


def _plain(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    strangers = [name for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if strangers or not state_dict:
        raise OfficialCheckpointError(
            f"expected a state dict, names to tensors, got {f'no tensor at {strangers[:3]}' if strangers else 'nothing'}; "
            "give the checkpoint's 'model' or 'state_dict', or read the file with read_official_file"
        )
    prefix = "module." if all(name.startswith("module.") for name in state_dict) else ""
    return {
        name.removeprefix(prefix): value.float() if value.is_floating_point() else value
        for name, value in state_dict.items()
    }


def _check_family(tensors: Mapping[str, Tensor], family: str) -> None:
    likely = looks_like(tensors)
    if likely is not None and likely not in {family, *IMPORTERS[family].also_reads}:
        remedy = f"pass family='{likely}'" if likely in IMPORTERS else "which cannot be imported"
        raise OfficialCheckpointError(
            f"expected a checkpoint of '{family}', got tensors that look like '{likely}'; {remedy}"
        )
