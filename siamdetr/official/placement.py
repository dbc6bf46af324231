"""Assign the tensors of a checkpoint to the parameters of a module.

Every tensor is accounted for, and every parameter gets a value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from siamdetr.errors import OfficialCheckpointError
from siamdetr.official.rules import UNUSED_ROW, UNUSED_ROWS, Aside, Rule, translate

_UNUSED = (UNUSED_ROW, UNUSED_ROWS)


@dataclass(frozen=True)
class Coverage:
    """The account of an import: the place of every tensor, and the origin of every parameter."""

    used: tuple[str, ...]  # official names
    left_aside: Mapping[str, str]  # official name: reason why it has no counterpart here
    missing: Mapping[str, str]  # our name, which keeps its random values: reason why the file cannot have it
    ignored_options: tuple[str, ...]  # official options that do not concern the modules


def distribute(
    tensors: Mapping[str, Tensor], module: nn.Module, rules: Sequence[Rule | Aside]
) -> tuple[tuple[str, ...], dict[str, str], dict[str, Tensor]]:
    """Find the place of every tensor of a checkpoint.

    Args:
        tensors: by the checkpoint's names.
        module: of ours, which they are for.
        rules: from the checkpoint's names to ours.
    Returns:
        The used names, those left aside with reasons, and our names with their tensors.
    Raises:
        OfficialCheckpointError: a tensor without place, or of another shape than its place.
    """
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
            f"{len(strangers)} tensors have no place in a model of these arguments: {few(strangers)}; "
            "is it another family, or a variant that is not supported?"
        )
    return tuple(used), left_aside, values


def _unused_rows(tensor: Tensor, kept: Sequence[Tensor], last: str) -> list[Tensor]:
    """An empty tensor with the shape of the rows that are not kept; None if all are used."""
    if last not in _UNUSED:
        return []
    rows = 1 if last == UNUSED_ROW else max(1, len(tensor) - sum(len(part) for part in kept))
    return [kept[0].new_empty(rows, *kept[0].shape[1:])]


def _split(name: str, tensor: Tensor, targets: Sequence[Tensor]) -> Sequence[Tensor]:
    """Split a tensor into as many parts as it has targets.

    Along the first axis; or along the second, if each target has all its rows.
    """
    first = targets[0]
    axis = int(len(targets) > 1 and first.ndim == tensor.ndim == 2 and tensor.shape[0] == first.shape[0])
    parts = [target.shape[axis] if target.ndim else 1 for target in targets]
    shape = [*first.shape[:axis], sum(parts), *first.shape[axis + 1 :]] if first.ndim else []
    if list(tensor.shape) != shape:
        raise OfficialCheckpointError(
            f"tensor '{name}': got {list(tensor.shape)}, expected {shape} for these arguments; correct the arguments"
        )
    return tensor.split_with_sizes(parts, dim=axis) if len(targets) > 1 else [tensor]


def fill(module: nn.Module, values: Mapping[str, Tensor], *, why: Callable[[str], str | None]) -> dict[str, str]:
    """Load `values` into `module`.

    Args:
        module: of ours, changed in place.
        values: tensors by our names.
        why: the reason why the checkpoint need not have a tensor of ours; None: it must have it.
        Returns:
            Our names that keep their values, with reasons.
    Raises:
        OfficialCheckpointError: a tensor is missing without reason.
    """
    reasons = {name: why(name) for name in module.state_dict() if name not in values}
    lost = [name for name, reason in reasons.items() if reason is None]
    if lost:
        raise OfficialCheckpointError(
            f"the checkpoint lacks {len(lost)} tensors: {few(lost)} (our names); is it cut, or are the arguments of another model?"
        )
    module.load_state_dict(dict(values), strict=not reasons)
    return {name: reason for name, reason in reasons.items() if reason is not None}


def few(names: Sequence[str], limit: int = 6) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
