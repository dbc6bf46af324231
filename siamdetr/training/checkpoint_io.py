"""How Lightning's checkpoints reach the disk: atomically, with a digest, and back without unpickling.

Ours: Lightning's own writing has no fsync, puts its temporary file elsewhere, and its reading may unpickle.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from siamdetr.errors import CheckpointError
from siamdetr.model_file import digest
from siamdetr.system.atomic_file import atomic_write, sweep_temporaries

STATE = "siamdetr"  # our section of the checkpoint
NORMALIZATION = "normalization"  # in it: [mean, std] of the run's images, three values each
FORMAT_VERSION = 1
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint as one file that is always whole; the one before it is kept as previous.ckpt."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`. Called on the first process only.

        Raises:
            CheckpointError: the disk is full; the old checkpoint is intact.
        """
        path = Path(path)
        sweep_temporaries(path.parent)
        sealed = {**checkpoint, "sha256": digest(checkpoint)}
        if path.exists():
            _keep(path)
        atomic_write(path, lambda file: torch.save(sealed, file))

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, whatever Lightning asks for, with `weights_only=True`."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A training checkpoint of ours, on the CPU, verified.

    Raises:
        CheckpointError: not there, not ours, truncated, damaged or of a newer version. Nothing is ever unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds here, and none of them is ours to tell apart
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path}: truncated, damaged, or not a checkpoint of siamdetr ({reason}); nothing in it was executed"
        ) from error
    state = checkpoint.get(STATE) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not a checkpoint of siamdetr; `siamdetr convert` reads official ones")
    if int(state.get("format_version", 0)) > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format {state['format_version']}, but this siamdetr reads up to {FORMAT_VERSION}; update siamdetr"
        )
    expected = checkpoint.pop("sha256", None)
    if digest(checkpoint) != expected:
        raise CheckpointError(f"{path}: damaged: its contents do not have the SHA-256 it was written with")
    return checkpoint


def newest_valid(folder: str | Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The newest readable checkpoint of a run folder, its content, and what was wrong with those passed over.

    Raises:
        CheckpointError: there are checkpoints, but none can be read.
    """
    problems: list[str] = []
    for name in (LAST, PREVIOUS):
        path = Path(folder) / name
        if path.exists():
            try:
                return path, read_checkpoint(path), problems
            except CheckpointError as error:
                problems.append(str(error))
    if problems:
        raise CheckpointError("no checkpoint can be read:\n" + "\n".join(problems))
    return None


def _keep(path: Path) -> None:
    """Give the old checkpoint a second name, previous.ckpt, before the new one takes its first."""
    spare = path.with_name(f".{PREVIOUS}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        spare.unlink()
    try:
        os.link(path, spare)
    except OSError:  # a file system without hard links: then there is no previous one
        return
    spare.replace(path.with_name(PREVIOUS))
