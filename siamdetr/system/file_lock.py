"""One writer at a time: a program waits while another one writes the same file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from siamdetr.errors import DataError

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_TAKEN = {errno.EWOULDBLOCK, errno.EACCES}


@contextlib.contextmanager
def only_writer(path: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Within it no other program of this kind writes `path`; its folder is made.

    The lock is the system's, on a hidden file beside it, and ends with the process, however that ends.

    Args:
        path: the file to write.
        waiting: called repeatedly while another program has the lock; may raise to give up.
    Raises:
        DataError: nothing can be written there.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_locked(lock)
        if descriptor is None:
            logger.info("%s: another program is writing it; waiting", path)
        while descriptor is None:
            waiting()
            time.sleep(_POLL_SECONDS)
            descriptor = _open_locked(lock)
    except OSError as error:
        raise DataError(f"{path}: cannot be written there ({error.strerror}); choose another place") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)  # and with it the lock


def _open_locked(lock: Path) -> int | None:
    """The lock file, open and locked; None: another program has it.

    Where the file system knows no locks, there is none.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            os.close(descriptor)
            return None
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.stat(lock), os.fstat(descriptor)):
            return descriptor
    os.close(descriptor)  # its last owner has removed it: a newcomer would lock another file
    return None
