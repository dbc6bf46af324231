"""The folder of a run: its place, the checkpoint to resume from, and its config.yaml."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import CheckpointError, DataError, SettingsError
from siamdetr.files import CONFIG_FILE, LAST_CHECKPOINT
from siamdetr.settings.base import to_json
from siamdetr.settings.resolve import differences, explain
from siamdetr.settings.training import FinetuneSettings, RunSettings
from siamdetr.system.launcher import launch
from siamdetr.training.checkpoints.checkpoint_file import STATE, newest_valid, read_checkpoint
from siamdetr.training.open_datasets import open_validation

_log = logging.getLogger(__name__)
RUNS = Path("runs")
_FOLDER_VARIABLE = "SIAMDETR_RUN_FOLDER"  # the first process tells those that it starts

# Settings that may change between a checkpoint and its continuation: no weight depends on them.
_FREE = {
    "output", "device", "devices", "num_nodes", "workers", "worker_timeout", "log_every", "checkpoint_every", "loggers",
    "val_limit", "early_stopping", "init",
}  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run; `checkpoint` is the one to resume from, None for a new run."""

    path: Path
    checkpoint: Path | None = None
    content: dict[str, Any] | None = None

    @property
    def step(self) -> int:
        """Optimizer steps done so far."""
        return 0 if self.content is None else int(self.content["step"])


def method_of(config: Mapping[str, Any]) -> str | None:
    """The pretraining method of a config.yaml; None: it is of a finetuning run."""
    method = config.get("method", config.get("pretext"))  # its first name
    return None if method is None else str(method)


def validation_part(run: Path) -> DetectionIndex | None:
    """The labelled images that a finetuning run was validated on.

    None where `run` is not the folder of one, its data has no such part, or is not there any more (which is warned of).
    """
    config = run / CONFIG_FILE
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else None
        if not isinstance(values, dict) or method_of(values) is not None:
            return None
        return open_validation(FinetuneSettings.model_validate(values))
    except ValidationError as error:  # a run of another version
        _log.warning("The run's validation images are not to be had: %s", explain(error))
    except (DataError, OSError, UnicodeDecodeError, yaml.YAMLError) as error:  # data that has moved, a damaged file
        _log.warning("The run's validation images are not to be had: %s", error)
    return None


def choose_folder(settings: RunSettings, resume: str | None) -> RunFolder:
    """The run folder, made if new.

    Args:
        settings: `output` names the folder; None: the next free runs/<stage>-<n>, or with `resume` the newest of them.
        resume: None: a new run; "auto": go on if there is a checkpoint, else a new run; or a checkpoint or run folder.
    Raises:
        CheckpointError: the checkpoint cannot be read, or is of another kind of run.
        SettingsError: the folder holds a run already, or several processes were started without naming a folder.
    """
    if resume not in (None, "auto"):
        given = Path(resume)
        folder = given if given.is_dir() else given.parent
        if given.is_dir() and not (given / LAST_CHECKPOINT).exists():
            raise CheckpointError(f"{given}: no {LAST_CHECKPOINT} here to resume from")
        return _resumed(folder, None if given.is_dir() else given)
    folder = _named(settings, newest=resume == "auto")
    if resume == "auto" and (folder / LAST_CHECKPOINT).exists():
        return _resumed(folder, None)
    if launch().is_first:
        if (folder / LAST_CHECKPOINT).exists():
            raise SettingsError(
                f"{folder} holds a run already: go on with --resume auto, or give another folder with -o"
            )
        folder.mkdir(parents=True, exist_ok=True)
    return RunFolder(folder)


def check_same_run(checkpoint: dict[str, Any], settings: RunSettings, path: Path) -> None:
    """Refuse to continue with other settings than the checkpoint's.

    Raises:
        CheckpointError: naming each setting that differs, with both values.
    """
    stage, ours = checkpoint[STATE]["stage"], to_json(settings)
    if stage != settings.stage:
        raise CheckpointError(f"{path}: a checkpoint of {stage}, not of {settings.stage}; use it with --init")
    theirs = _completed(checkpoint[STATE]["settings"], type(settings))
    differing = [key for key in differences(ours, theirs) if key.partition(".")[0] not in _FREE]
    if differing:
        lines = [f"  {key}: {_value(theirs, key)!r} in the checkpoint, {_value(ours, key)!r} now" for key in differing]
        raise CheckpointError(
            f"{path}: cannot resume with other settings than the run's own:\n" + "\n".join(lines) + "\n"
            "Give the same settings (they are in config.yaml beside it), or start a new run from its weights with --init"
        )


def _named(settings: RunSettings, *, newest: bool) -> Path:
    if settings.output is not None:
        return Path(settings.output)
    if _FOLDER_VARIABLE in os.environ and not launch().is_first:
        return Path(os.environ[_FOLDER_VARIABLE])
    if launch().by in ("torchrun", "slurm"):
        raise SettingsError("several processes need one folder: give it with -o")
    stage = settings.stage
    number = 1
    while (RUNS / f"{stage}-{number}").exists():
        number += 1
    if newest and number > 1 and (RUNS / f"{stage}-{number - 1}" / LAST_CHECKPOINT).exists():
        number -= 1
    folder = RUNS / f"{stage}-{number}"
    os.environ[_FOLDER_VARIABLE] = str(folder)
    return folder


def _resumed(folder: Path, checkpoint: Path | None) -> RunFolder:
    if checkpoint is not None:
        return RunFolder(folder, checkpoint, read_checkpoint(checkpoint))
    found = newest_valid(folder)
    assert found is not None
    path, content, problems = found
    for problem in problems:
        _log.warning("%s; going on from %s", problem, path.name)
    return RunFolder(folder, path, content)


def _completed(stored: dict[str, Any], cls: type[RunSettings]) -> dict[str, Any]:
    """The settings of a checkpoint.

    Those that its version did not have yet have their defaults, which are what it did.
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
