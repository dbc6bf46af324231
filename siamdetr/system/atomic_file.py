"""Atomic files: at every moment the whole old file or the whole new one.

Every file that matters is written through here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from siamdetr.errors import CheckpointError
from siamdetr.system.processes import lives

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def atomic_write(path: str | Path, writer: Callable[[IO[bytes]], object]) -> None:
    """Write a file atomically: `path` is always the whole old file or the whole new one.

    A temporary file in the same folder, flush, fsync, rename, fsync of the folder.

    Args:
        path: the file to write; its folder is made.
        writer: writes into the open binary file it is given.
    Raises:
        CheckpointError: the disk is full. Whatever goes wrong, an old file at `path` is intact.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    guard: _Guard | None = None
    try:
        with temporary.open("wb") as file:
            guard = _Guard(file)
            writer(guard)  # type: ignore[arg-type]  # whatever else is asked of it, the file answers
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        cause = guard.error if guard is not None and guard.error is not None else error
        if isinstance(cause, OSError) and cause.errno in _DISK_FULL:
            raise CheckpointError(_disk_full(path)) from cause
        raise
    sync_folder(path.parent)


def atomic_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8; errors as of `atomic_write`."""
    atomic_write(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))


def move_into_place(source: Path, target: Path) -> None:
    """Give a finished file its name, in the place of the file that has it.

    Whole at every moment, also after power loss.

    Args:
        source: a file on the same disk, such as one in a temporary folder beside the target.
        target: its new name.
    """
    with source.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(source, target)
    sync_folder(target.parent)


def atomic_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` as a file; see `atomic_write`."""
    atomic_write(path, lambda file: file.write(data))


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive power loss, where folders can be opened: not on Windows."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_temporaries(folder: str | Path, *, owned: bool = False) -> int:
    """Remove the temporary files that killed processes left in a folder; returns how many.

    Args:
        folder: where to look; not in its folders.
        owned: nobody else writes there, because its lock is held: remove all. Otherwise files of living processes stay;
            a process number is no proof of life, because containers start with the same numbers again and again.
    """
    swept = 0
    for stale in Path(folder).glob(".*.tmp"):
        owner = stale.name.split(".")[-2]
        if owner.isdigit() and (owned or not lives(int(owner))):
            with contextlib.suppress(FileNotFoundError):
                stale.unlink()
                swept += 1
    return swept


class _Guard:
    """A binary file that remembers the OSError of a failed write, which torch.save hides."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _disk_full(path: Path) -> str:
    free = shutil.disk_usage(path.parent).free / 2**20
    old = "the file that was there is intact" if path.exists() else "nothing was written"
    return f"{path}: the disk is full ({free:.0f} MiB free); {old}. Free some space, then go on with --resume auto"
