"""Checkpoints of the official repositories: read without running code, checked to the last tensor, and converted.

A family is one entry of `siamdetr.official.families.IMPORTERS`. `load_criterion` gives the matching losses.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from siamdetr.errors import OfficialCheckpointError, WeightFileError
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.model_file import ModelMetadata, save_model
from siamdetr.models.backbone.normalization import backbone_normalization
from siamdetr.models.backbone.weight_files import read_weight_file, unwrap_state_dict
from siamdetr.models.detector import Detector
from siamdetr.official.families import IMPORTERS, Module, looks_like
from siamdetr.official.keys import UNUSED_ROW, UNUSED_ROWS, Aside, Rule, translate
from siamdetr.official.losses import load_criterion
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

_UNUSED = (UNUSED_ROW, UNUSED_ROWS)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Coverage:
    """What became of every tensor of a checkpoint, and of every tensor of ours."""

    used: tuple[str, ...]  # official names
    left_aside: Mapping[str, str]  # official name: why it has no place here
    missing: Mapping[str, str]  # our name, which keeps its random values: why the file cannot have it
    ignored_options: tuple[str, ...]  # official options that say nothing about the modules


@dataclass(frozen=True)
class Imported:
    """A module with a checkpoint's weights, and the account of them."""

    module: Module
    coverage: Coverage


@dataclass(frozen=True)
class OfficialFile:
    """What is in a checkpoint file."""

    state_dict: Mapping[str, Tensor]
    arguments: Mapping[str, Any]  # the options of its run, where the file keeps them


def load_official(
    state_dict: Mapping[str, Tensor], *, family: str, arguments: Mapping[str, Any] | argparse.Namespace
) -> Module:
    """A detector (or pretext module) with the weights of an official checkpoint, every one accounted for.

    Args:
        state_dict: official names; `module.` of data-parallel training is stripped, half precision becomes float32.
        family: a key of `IMPORTERS`.
        arguments: official options. Those that say nothing about the modules are ignored and reported in the log; what is
            left out is read off the tensors where they show it, and else has the official default.
    Raises:
        OfficialCheckpointError: unknown or wrong family, a tensor without place, a parameter without tensor, or arguments that
            contradict tensors.
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
    used, left_aside, values = _distribute(tensors, module, importer.rules(module))
    missing = _fill(module, values, why=lambda name: importer.may_miss(tensors, name))
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
        arguments: official options; they win over those in the file.
        output: a .safetensors file, written atomically.
        class_names: one a class; without them classes are called "class 0", "class 1", ... The official code uses a data set's
            category ids as labels, so ids are 0, 1, ...
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
    metadata = ModelMetadata(
        class_names=tuple(class_names),
        category_ids=tuple(labels),
        preprocessing=PreprocessingSpec().normalized_by(backbone_normalization(detector.settings.backbone)),
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


def _distribute(
    tensors: Mapping[str, Tensor], module: nn.Module, rules: Sequence[Rule | Aside]
) -> tuple[tuple[str, ...], dict[str, str], dict[str, Tensor]]:
    """Used official names, left-aside ones with reasons, and our names with their tensors."""
    expected = module.state_dict()
    used, left_aside, strangers = [], {}, []
    values: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = translate(name, rules)
        if isinstance(place, Aside):
            left_aside[name] = place.reason
        elif place is not None and getattr(module, place[0].split(".")[0], ...) is None:
            left_aside[name] = "its loss has no weight in these arguments"
        elif place is None or any(
            target not in _UNUSED and (target not in expected or target in values) for target in place
        ):
            strangers.append(name)
        else:
            used.append(name)
            kept = [expected[target] for target in place if target not in _UNUSED]
            unused = _unused_rows(tensor, kept, place[-1])
            values |= dict(zip(place, _split(name, tensor, [*kept, *unused]), strict=True))
            if unused:
                del values[place[-1]]
                rows = "-1" if place[-1] == UNUSED_ROW else f"-{len(unused[0])}:"
                left_aside[f"{name}[{rows}]"] = "rows that the official code never reads"
    if strangers:
        raise OfficialCheckpointError(
            f"{len(strangers)} tensors have no place in a model of these arguments: {_few(strangers)}; "
            "is it another family, or a variant that is not supported?"
        )
    return tuple(used), left_aside, values


def _unused_rows(tensor: Tensor, kept: Sequence[Tensor], last: str) -> list[Tensor]:
    """The shape of what a tensor holds beyond the parts that are kept, as a tensor; none where all is used."""
    if last not in _UNUSED:
        return []
    rows = 1 if last == UNUSED_ROW else max(1, len(tensor) - sum(len(part) for part in kept))
    return [kept[0].new_empty(rows, *kept[0].shape[1:])]


def _split(name: str, tensor: Tensor, targets: Sequence[Tensor]) -> Sequence[Tensor]:
    """A tensor in as many parts as it has targets: along the first axis, or, of as many rows as each target, along the second."""
    first = targets[0]
    axis = int(len(targets) > 1 and first.ndim == tensor.ndim == 2 and tensor.shape[0] == first.shape[0])
    parts = [target.shape[axis] if target.ndim else 1 for target in targets]
    shape = [*first.shape[:axis], sum(parts), *first.shape[axis + 1 :]] if first.ndim else []
    if list(tensor.shape) != shape:
        raise OfficialCheckpointError(
            f"tensor '{name}': got {list(tensor.shape)}, expected {shape} for these arguments; correct the arguments"
        )
    return tensor.split_with_sizes(parts, dim=axis) if len(targets) > 1 else [tensor]


def _fill(module: nn.Module, values: Mapping[str, Tensor], *, why: Callable[[str], str | None]) -> dict[str, str]:
    """Load; returns what the file cannot have, with reasons."""
    reasons = {name: why(name) for name in module.state_dict() if name not in values}
    lost = [name for name, reason in reasons.items() if reason is None]
    if lost:
        raise OfficialCheckpointError(
            f"the checkpoint lacks {len(lost)} tensors: {_few(lost)} (our names); is it cut, or are the arguments of another model?"
        )
    module.load_state_dict(dict(values), strict=not reasons)
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _few(names: Sequence[str], limit: int = 6) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
