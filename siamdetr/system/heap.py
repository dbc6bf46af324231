"""What glibc's heap does with freed memory: a training keeps it, a server keeps little.

By default glibc requests a block of more than 32 MiB from the system and returns it when it is freed. Each step of a
training requests the same blocks again, and the system fills every page with zeros first. Other C libraries are left
as they are.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Options of mallopt(3), with glibc's own values where it has constants for them.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_UNLIMITED = -1
_GLIBC_MMAP_MAX = 65536
_ADAPTED = 32 * 2**20  # bytes; the most that glibc's own threshold adapts to
_LARGE = 4 * 2**20  # bytes of a block that comes from the system and goes back to it; Pillow's are at most 16 MiB
_KEPT = 32 * 2**20  # bytes of smaller ones that a thread keeps for the next picture


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep all freed memory inside the block for the next request, and return it at the end."""
    _set(_MMAP_MAX, 0)
    _set(_TRIM_THRESHOLD, _UNLIMITED)
    try:
        yield
    finally:
        return_large_blocks()
        return_free_memory()


def return_large_blocks() -> None:
    """Glibc's usual way: large blocks go back to the system when they are freed."""
    _set(_MMAP_MAX, _GLIBC_MMAP_MAX)
    _set(_MMAP_THRESHOLD, _ADAPTED)
    _set(_TRIM_THRESHOLD, 2 * _ADAPTED)


def keep_little_memory() -> None:
    """Which freed memory a server keeps; otherwise glibc adapts to the requests.

    It would keep the blocks of the largest images in every thread: hundreds of megabytes after a few pictures of 40
    megapixels. And it would return small blocks too soon: requesting that memory again takes a third of the time of
    decoding a picture.
    """
    _set(_MMAP_THRESHOLD, _LARGE)
    _set(_TRIM_THRESHOLD, _KEPT)


def return_free_memory() -> None:
    """Return free memory to the system, which the C library keeps by default."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _set(option: int, value: int) -> None:
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(option, value)


def _glibc(name: str) -> Callable[..., int] | None:
    """A function of glibc; None with another C library."""
    function: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    return function
