"""Write Lightning's checkpoints as our files.

Ours: Lightning's own writing has no fsync, puts its temporary file elsewhere, and its reading may unpickle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from siamdetr.training.checkpoints.checkpoint_file import read_checkpoint, write_checkpoint


class AtomicCheckpointIO(CheckpointIO):
    """Writes and reads checkpoints as `checkpoint_file` does."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint. Called on the first process only."""
        write_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, whatever Lightning asks for, with `weights_only=True`."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)
