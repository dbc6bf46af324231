"""The folder of a run: its place, the checkpoint to resume from, and its config.yaml."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import CheckpointError, DataError, SettingsError
from siamdetr.files import CONFIG_FILE, DIAGNOSTICS, LAST_CHECKPOINT
from siamdetr.settings.base import to_json
from siamdetr.settings.resolve import differences, explain
from siamdetr.settings.training import FinetuneSettings, RunSettings
from siamdetr.system.atomic_file import atomic_text, sweep_temporaries
from siamdetr.system.file_lock import sole_owner
from siamdetr.system.launcher import launch
from siamdetr.training.checkpoints.checkpoint_file import newest_valid
from siamdetr.training.checkpoints.fingerprint import changes, fingerprint
from siamdetr.training.checkpoints.run_state import RunState, read_resumable, run_state
from siamdetr.training.open_datasets import open_training, open_validation

_log = logging.getLogger(__name__)
RUNS = Path("runs")
_FOLDER_VARIABLE = "SIAMDETR_RUN_FOLDER"  # the first process tells those that it starts

# Settings that may change between a checkpoint and its continuation: no weight depends on them.
_FREE = {
    "output", "device", "devices", "num_nodes", "workers", "worker_timeout", "log_every", "checkpoint_every", "loggers",
    "val_limit", "early_stopping", "init",
}  # fmt: skip


# Training can go on with other values of these, if it is told to: longer, with another rate, or on a machine without
# a compiler.
_CHANGEABLE = {"steps", "epochs", "optimizer", "schedule", "val_every", "compile"}


@dataclass(frozen=True)
class RunFolder:
    """An opened run folder, and what it resumes from.

    Attributes:
        path: the folder.
        checkpoint: what the run goes on from; None for a new run.
        content: of the checkpoint.
        state: what the checkpoint says about the run.
        changes: made in this and in earlier continuations, for the lineage.
        data: fingerprints of the parts of the data.
    """

    path: Path
    checkpoint: Path | None = None
    content: dict[str, Any] | None = None
    state: RunState | None = None
    changes: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Optimiser steps that are done already."""
        return 0 if self.state is None else self.state.step


def method_of(config: Mapping[str, Any]) -> str | None:
    """The pretraining method of a config.yaml; None: it is of a finetuning run."""
    method = config.get("method", config.get("pretext"))  # its first name
    return None if method is None else str(method)


def validation_part(run: Path) -> DetectionIndex | None:
    """The labelled images that a finetuning run was validated on.

    None if `run` is not the folder of one, or if its data has no such part; or, with a warning, if the data is gone.
    """
    return _part(run, "validation", open_validation)


def training_part(run: Path) -> DetectionIndex | None:
    """The labelled images that a finetuning run was trained on; None as of `validation_part`."""
    return _part(run, "training", open_training)


def _part(run: Path, name: str, opened: Callable[[FinetuneSettings], DetectionIndex | None]) -> DetectionIndex | None:
    config = run / CONFIG_FILE
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else None
        if not isinstance(values, dict) or method_of(values) is not None:
            return None
        return opened(FinetuneSettings.model_validate(values))
    except ValidationError as error:  # a run of another version
        _log.warning("The run's %s images are not to be had: %s", name, explain(error))
    except (DataError, OSError, UnicodeDecodeError, yaml.YAMLError) as error:  # data that has moved, a damaged file
        _log.warning("The run's %s images are not to be had: %s", name, error)
    return None


@contextmanager
def open_run(
    settings: RunSettings, resume: str | None, data: Mapping[str, DetectionIndex], *, allow_changes: bool = False
) -> Iterator[RunFolder]:
    """The run folder, made if new, with config.yaml in it; within the context no other run writes there.

    Args:
        settings: `output` names the folder; None: the next free runs/<stage>-<n>, or with `resume` the newest of them.
        resume: None: a new run; "auto": go on if there is a checkpoint, else a new run; or a checkpoint or run folder.
        data: the parts of the data, such as "train" and "val".
        allow_changes: go on although the length, the rates or the data are not those of the checkpoint.
    Raises:
        CheckpointError: the checkpoint cannot be read, is of another run, or the data has changed.
        FolderInUseError: another run writes there.
        SettingsError: the folder holds a run already, or several processes were started without naming a folder.
    """
    folder, checkpoint = _place(settings, resume)
    with sole_owner(folder) if launch().is_first else nullcontext():
        run = RunFolder(folder)
        if checkpoint is not None or (resume is not None and (folder / LAST_CHECKPOINT).exists()):
            run = _resumed(folder, checkpoint)
            run = replace(run, changes=check_same_run(run, settings, data, allow_changes=allow_changes))
            _log.info("Going on from %s at step %d.", run.checkpoint, run.step)
        elif launch().is_first and (folder / LAST_CHECKPOINT).exists():
            raise SettingsError(
                f"{folder} holds a run already: go on with --resume auto, or give another folder with -o"
            )
        if launch().is_first:
            for place in (folder, folder / DIAGNOSTICS):
                sweep_temporaries(place, owned=True)
            write_config(settings, folder)
        yield replace(run, data={name: fingerprint(index) for name, index in data.items()})


def write_config(settings: RunSettings, folder: Path) -> None:
    """Write config.yaml."""
    atomic_text(folder / CONFIG_FILE, yaml.safe_dump(to_json(settings), sort_keys=False, allow_unicode=True))


def check_same_run(
    run: RunFolder, settings: RunSettings, data: Mapping[str, DetectionIndex], *, allow_changes: bool = False
) -> tuple[str, ...]:
    """Check that settings and data are those of the checkpoint.

    Args:
        run: with its checkpoint.
        settings: of now.
        data: the parts of the data now.
        allow_changes: other data, and settings that training can go on with (`_CHANGEABLE`), are taken.
    Returns:
        The changes of this and of earlier continuations, oldest first, for the lineage.
    Raises:
        CheckpointError: naming each setting that differs, with both values, and what differs in the data.
    """
    state, path = run.state, run.checkpoint
    assert state is not None
    if state.stage != settings.stage:
        raise CheckpointError(f"{path}: a checkpoint of {state.stage}, not of {settings.stage}; use it with --init")
    theirs, ours = _completed(state.settings, type(settings)), to_json(settings)
    if ours["precision"] == "auto":  # what was decided stays
        ours["precision"] = theirs["precision"]
    differing = [key for key in differences(ours, theirs) if key.partition(".")[0] not in _FREE]
    fixed = [key for key in differing if key.partition(".")[0] not in _CHANGEABLE]
    if fixed or (differing and not allow_changes):
        lines = [f"  {key}: {_value(theirs, key)!r} in the checkpoint, {_value(ours, key)!r} now" for key in differing]
        way = "" if fixed else "go on with the new ones (--allow-changes; the lineage says so), "
        raise CheckpointError(
            f"{path}: cannot resume with other settings than the run's own:\n" + "\n".join(lines) + "\n"
            f"Give the same settings (they are in config.yaml beside it), {way}or start a new run from its weights with --init"
        )
    texts = [f"{key} {_value(theirs, key)} → {_value(ours, key)}" for key in differing]
    texts += _data_changes(state, data, path, allow_changes=allow_changes)
    return (*state.changes, *([f"from step {state.step} on: {', '.join(texts)}"] if texts else []))


def _data_changes(
    state: RunState, data: Mapping[str, DetectionIndex], path: Path | None, *, allow_changes: bool
) -> list[str]:
    """The differences between the data now and the fingerprints in the checkpoint.

    Raises:
        CheckpointError: there are differences, and they are not allowed.
    """
    found = [
        f"{name}: {change}"
        for name, index in data.items()
        if name in state.data
        for change in changes(state.data[name], index)
    ]
    if found and not allow_changes:
        lines = "\n".join(f"  {text}" for text in found)
        raise CheckpointError(
            f"{path}: the data is not that of the checkpoint:\n{lines}\n"
            "Restore it, go on with the data as it is (--allow-changes; the lineage says so), or start a new run"
        )
    return found


def _place(settings: RunSettings, resume: str | None) -> tuple[Path, Path | None]:
    """The run folder, and the checkpoint if one was named."""
    if resume not in (None, "auto"):
        given = Path(resume)
        if given.is_dir() and not (given / LAST_CHECKPOINT).exists():
            raise CheckpointError(f"{given}: no {LAST_CHECKPOINT} here to resume from")
        if not given.is_dir() and not given.is_file():
            raise CheckpointError(f"{given}: no such checkpoint")
        return (given, None) if given.is_dir() else (given.parent, given)
    if settings.output is not None:
        return Path(settings.output), None
    if _FOLDER_VARIABLE in os.environ and not launch().is_first:
        return Path(os.environ[_FOLDER_VARIABLE]), None
    if launch().by in ("torchrun", "slurm"):
        raise SettingsError("several processes need one folder: give it with -o")
    folder = _numbered(settings.stage, newest=resume == "auto")
    os.environ[_FOLDER_VARIABLE] = str(folder)
    return folder, None


def _numbered(stage: str, *, newest: bool) -> Path:
    """runs/<stage>-<n>: the newest with a checkpoint, or the next free one.

    It is made here, so that two runs never choose the same.
    """
    number = 1
    while (RUNS / f"{stage}-{number}").exists():
        number += 1
    if newest and number > 1 and (RUNS / f"{stage}-{number - 1}" / LAST_CHECKPOINT).exists():
        return RUNS / f"{stage}-{number - 1}"
    RUNS.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            (RUNS / f"{stage}-{number}").mkdir()
            return RUNS / f"{stage}-{number}"
        except FileExistsError:
            number += 1


def _resumed(folder: Path, checkpoint: Path | None) -> RunFolder:
    found = (checkpoint, read_resumable(checkpoint), []) if checkpoint else newest_valid(folder, read_resumable)
    assert found is not None
    path, content, problems = found
    for problem in problems:
        _log.warning("%s; going on from %s", problem, path.name)
    return RunFolder(folder, path, content, run_state(content, path))


def _completed(stored: dict[str, Any], cls: type[RunSettings]) -> dict[str, Any]:
    """The settings of a checkpoint.

    Settings that its version did not have yet get their defaults, which reproduce its behaviour.
    """
    try:
        completed: dict[str, Any] = to_json(cls.model_validate(stored))
    except ValidationError:  # it has what this version does not: the comparison names it
        return stored
    return completed


def _value(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
