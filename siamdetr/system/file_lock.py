"""One writer at a time: a lock of the operating system that ends with its process (filelock)."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from siamdetr.errors import DataError, FolderInUseError

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_LOCK = ".lock"  # in a folder that has an owner


@contextlib.contextmanager
def only_writer(path: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold the lock of `path`, so that no other program of this kind writes it; waits for the lock.

    The folder of `path` is made.

    Args:
        path: the file to write; the lock is a hidden file beside it.
        waiting: called repeatedly while another program has the lock; may raise to give up.
    Raises:
        DataError: nothing can be written there.
    """
    file = path.with_name(f".{path.name}.lock")
    lock = FileLock(file, thread_local=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        said = False
        while not _acquired(lock):
            if not said:
                logger.info("%s: another program is writing it; waiting", path)
            said = True
            waiting()
            time.sleep(_POLL_SECONDS)
    except OSError as error:
        raise DataError(f"{path}: cannot be written there ({error.strerror}); choose another place") from None
    with _released(lock, file):
        yield


@contextlib.contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, so that no other program of this kind writes into it.

    The folder is made, and the lock file names the owner.

    Raises:
        FolderInUseError: another program does; the text says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / _LOCK
    lock = FileLock(file, thread_local=False)
    if not _acquired(lock, timeout=_POLL_SECONDS * 2):
        with contextlib.suppress(OSError):
            owner = file.read_text(encoding="utf-8", errors="replace").strip()
            raise FolderInUseError(
                f"{folder}: in use by {owner or 'another process'}; wait for it or stop it, or give another folder with -o"
            )
        raise FolderInUseError(f"{folder}: in use by another process; wait for it or stop it")
    since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    with _released(lock, file):
        with contextlib.suppress(OSError):
            file.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}\n", encoding="utf-8")
        yield


def _acquired(lock: FileLock, timeout: float = 0) -> bool:
    """Whether this program gets the lock within some seconds.

    A file system without locks keeps nobody out.
    """
    try:
        lock.acquire(timeout=timeout, poll_interval=_POLL_SECONDS / 4)
    except Timeout:
        return False
    except NotImplementedError:
        return True
    return True


@contextlib.contextmanager
def _released(lock: FileLock, file: Path) -> Iterator[None]:
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is locked: whoever waits notices, and makes a new one
        lock.release()
