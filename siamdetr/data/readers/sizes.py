"""Sizes of image files, which are used instead of the sizes in annotation files.

Each header is read once. For large data sets the sizes are kept on disk, in the user's cache folder, under each file's
path, length and time.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from siamdetr.data.problems import ProblemLog
from siamdetr.errors import CheckpointError
from siamdetr.images.header import Header, read_headers
from siamdetr.system.atomic_file import atomic_write
from siamdetr.system.progress import Progress

CACHED_FROM = 5000  # images; headers of fewer images are read within a second
_KINDS = {
    "missing": "missing-image",
    "empty": "empty-file",
    "too large": "too-large-image",
    "damaged": "corrupt-image",
}


class HeaderReader:
    """Reads the headers of one data set's images.

    A context manager; at its end the sizes of a large data set are written to disk.

    Args:
        root: folder that the paths start from.
        total: approximate number of images that will be read.
    """

    def __init__(self, root: Path, total: int) -> None:
        self.root = root
        self._file = _cache_file(root) if total >= CACHED_FROM else None
        self._keys, self._rows = _read_cache(self._file)
        self._fresh: list[tuple[int, int, int, int]] = []  # key, height, width, turned

    def __enter__(self) -> HeaderReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None and self._fresh:
            fresh = np.array(self._fresh, dtype=object)
            keys = np.concatenate([self._keys, fresh[:, 0].astype(np.uint64)])
            _write_cache(self._file, keys, np.concatenate([self._rows, fresh[:, 1:].astype(np.int32)]))

    def read(self, paths: Sequence[str], progress: Progress | None = None) -> list[Header]:
        """The headers of images, in order.

        Args:
            paths: from the root.
            progress: called with (headers read, all headers).
        """
        if self._file is None:
            return read_headers([self.root / path for path in paths], progress=progress)
        root = os.path.abspath(self.root)
        keys = np.array([_key(f"{root}/{path}") for path in paths], dtype=np.uint64)
        places = np.searchsorted(self._keys, keys).clip(max=max(0, len(self._keys) - 1))
        known = self._keys[places] == keys if len(self._keys) else np.zeros(len(keys), dtype=np.bool_)
        unknown = np.flatnonzero(~known).tolist()
        fresh = read_headers([self.root / paths[i] for i in unknown], progress=progress)
        self._fresh += [
            (int(keys[i]), *header.size, header.turned)
            for i, header in zip(unknown, fresh, strict=True)
            if not header.problem
        ]
        if len(unknown) == len(paths):
            return fresh
        headers = _headers_of(self._rows[places])
        for i, header in zip(unknown, fresh, strict=True):
            headers[i] = header
        return headers


def usable_size(header: Header, file: str, where: str, log: ProblemLog) -> tuple[int, int] | None:
    """(height, width) of an upright image; None, with a note in the log, if it cannot be opened."""
    if not header.problem:
        return header.size
    log.add(_KINDS[header.problem], file, where)
    return None


def note_mismatch(annotated: tuple[int, int], header: Header, file: str, where: str, log: ProblemLog) -> None:
    """Note in the log that an annotated (height, width) is not the file's.

    (0, 0): nothing was annotated.
    """
    if not all(annotated) or annotated == header.size:
        return
    height, width = header.size
    stored = (width, height) if header.turned else (height, width)
    kind = "exif-size-mismatch" if annotated == stored else "size-mismatch"
    log.add(kind, file, where, f"annotated {annotated[1]} x {annotated[0]}, file {width} x {height}")


def _key(path: str) -> int:
    try:
        facts = os.stat(path)
    except OSError:
        return 0
    text = f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}"
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") | 1


def _headers_of(rows: NDArray[np.int32]) -> list[Header]:
    """The headers of rows (height, width, turned); equal rows share one."""
    different, positions = np.unique(rows, axis=0, return_inverse=True)
    headers = [Header((height, width), bool(turned)) for height, width, turned in different.tolist()]
    return [headers[i] for i in positions.reshape(-1).tolist()]


def _cache_file(root: Path) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(os.path.abspath(root).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return Path(base) / "siamdetr" / "headers" / f"{name}.npz"


def _read_cache(file: Path | None) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Ascending keys, and rows of (height, width, turned).

    Both are empty if there is no file or it is damaged.
    """
    if file is not None:
        with suppress(Exception):  # a lost cache costs only time; damaged files raise many errors
            with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as content:
                keys, rows = content["keys"], content["rows"]
            if keys.dtype == np.uint64 and rows.dtype == np.int32 and rows.shape == (len(keys), 3):
                return keys, rows
    return np.zeros(0, dtype=np.uint64), np.zeros((0, 3), dtype=np.int32)


def _write_cache(file: Path, keys: NDArray[np.uint64], rows: NDArray[np.int32]) -> None:
    keys, first = np.unique(keys, return_index=True)
    content = io.BytesIO()
    np.savez(content, keys=keys, rows=rows[first])
    with suppress(OSError, CheckpointError):  # a cache that cannot be written costs only time
        atomic_write(file, lambda stream: stream.write(content.getvalue()))
