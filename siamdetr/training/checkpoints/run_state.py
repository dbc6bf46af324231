"""The state of a run in its checkpoint, read with every type checked.

So a damaged checkpoint is an error in one line, not a traceback.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siamdetr.errors import CheckpointError
from siamdetr.training.checkpoints.checkpoint_file import STATE, read_checkpoint


@dataclass(frozen=True)
class RunState:
    """Our section of a checkpoint.

    Attributes:
        stage: "pretrain" or "finetune".
        settings: of the run, as plain values.
        step: optimiser steps that are done.
        world_size: processes that trained.
        torch: PyTorch's version.
        data: fingerprints of the parts of the data (`fingerprint.py`); empty in checkpoints of siamdetr 0.1.0.
        changes: what was changed in continuations, oldest first.
        stopped: the run ended before its last step, for lack of a better AP.
    """

    stage: str
    settings: dict[str, Any]
    step: int
    world_size: int
    torch: str
    data: dict[str, Any] = field(default_factory=dict)
    changes: tuple[str, ...] = ()
    stopped: bool = False


def run_state(content: Mapping[str, Any], path: Path) -> RunState:
    """Our section of the result of `read_checkpoint`.

    Raises:
        CheckpointError: a value is missing or of another type; the text names it.
    """
    section = content[STATE]
    state = RunState(
        stage=_expect(section, "stage", str, path),
        settings=_expect(section, "settings", dict, path),
        step=_expect(section, "step", int, path),
        world_size=_expect(section, "world_size", int, path),
        torch=_expect(section, "torch", str, path),
        data=_expect({"data": {}, **section}, "data", dict, path),
        changes=tuple(map(str, _expect({"changes": [], **section}, "changes", list, path))),
        stopped=_expect({"stopped": False, **section}, "stopped", bool, path),
    )
    if state.step < 0 or state.world_size < 1:
        raise CheckpointError(f"{path}: damaged: step {state.step} of {state.world_size} processes")
    return state


def read_resumable(path: Path) -> dict[str, Any]:
    """Read a checkpoint from which a run can continue.

    Raises:
        CheckpointError: as of `read_checkpoint`; or a part that training needs is missing, of another type, or not
            finite.
    """
    content = read_checkpoint(path)
    state = run_state(content, path)
    if _expect(content, "step", int, path) != state.step:
        raise CheckpointError(f"{path}: damaged: it says step {content['step']} and step {state.step}")
    for name, kind in (("state_dict", dict), ("optimizer_states", list), ("lr_schedulers", list), ("callbacks", dict)):
        parts = _expect(content, name, kind, path)
        if not parts or (name != "state_dict" and not all(parts.values() if kind is dict else parts)):
            raise CheckpointError(f"{path}: damaged: '{name}' or a part of it is empty")
    for name, tensor in _tensors({key: content[key] for key in ("state_dict", "optimizer_states", "callbacks")}):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{path}: {name} holds values that are not finite, and training would go on with them; resume from another "
                "checkpoint, or begin anew"
            )
    return content


def _expect(tree: Mapping[str, Any], key: str, kind: type, path: Path) -> Any:
    value = tree.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        got = "nothing" if key not in tree else f"a {type(value).__name__}"
        raise CheckpointError(f"{path}: damaged: for '{key}' got {got}, expected a {kind.__name__}")
    return value


def _tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from _tensors(value, f"{name}[{i}]")
