"""Near-duplicate images: the same picture in another size, compression or slightly other exposure.

Two images are duplicates where few bits of their hashes differ and their thumbnails agree (`images.likeness`).
Candidates are found by bytes of the hash that are equal, so that no other pairs are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from siamdetr.errors import UnreadableImageError
from siamdetr.images.likeness import DECODED_SIDE, HASH_BYTES, LIKENESS_BYTES, likeness_of
from siamdetr.images.open import open_untrusted
from siamdetr.system.progress import Progress

MOST_BITS = 6  # of 64 that may differ
MOST_DIFFERENCE = 8.0  # mean difference of the thumbnails, grey levels of 255, after their means are made equal
_BATCH = 1024


@dataclass(frozen=True)
class ImageHashes:
    """Hashes and thumbnails, by which images are compared.

    Attributes:
        hashes: [N, 8] uint8, 64 bits.
        thumbnails: [N, 256] uint8 grey levels.
        readable: [N] bool; an unreadable image has no duplicates.
    """

    hashes: NDArray[np.uint8]
    thumbnails: NDArray[np.uint8]
    readable: NDArray[np.bool_]

    def subset(self, rows: NDArray[np.int64]) -> ImageHashes:
        """The images at `rows`."""
        return ImageHashes(self.hashes[rows], self.thumbnails[rows], self.readable[rows])


class Likenesses:
    """Collects the likeness of one image after the other, `LIKENESS_BYTES` bytes each."""

    def __init__(self) -> None:
        self._content = bytearray()
        self._readable = bytearray()

    def __len__(self) -> int:
        return len(self._readable)

    def add(self, likeness: bytes) -> None:
        """Add the likeness of the next image; b"": it cannot be read."""
        self._content += likeness.ljust(LIKENESS_BYTES, b"\0")
        self._readable.append(bool(likeness))

    def hashes(self) -> ImageHashes:
        """Those of all images so far, without a copy."""
        rows = np.frombuffer(self._content, dtype=np.uint8).reshape(-1, LIKENESS_BYTES)
        readable = np.frombuffer(self._readable, dtype=np.bool_)
        return ImageHashes(rows[:, :HASH_BYTES], rows[:, HASH_BYTES:], readable)


def hash_images(paths: Sequence[Path], *, threads: int = 2, progress: Progress | None = None) -> ImageHashes:
    """Hash image files, several at a time; JPEGs are decoded at a fraction of their size."""
    found = Likenesses()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(paths), _BATCH):
            for likeness in pool.map(_likeness_of_file, paths[start : start + _BATCH]):
                found.add(likeness)
            if progress is not None:
                progress(len(found), len(paths))
    return found.hashes()


def find_duplicates(images: ImageHashes) -> NDArray[np.int64]:
    """[N] group of each image: duplicates, and duplicates of duplicates, share a number.

    Groups count from 0.
    """
    count = len(images.hashes)
    pairs = list(_duplicate_pairs(images))
    first, second = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), dtype=np.int64)
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(count, count))
    _, groups = connected_components(graph, directed=False)
    return groups.astype(np.int64)


def duplicate_groups(groups: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Positions of the images of each group with more than one, ordered by their first image."""
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    return sorted((np.sort(part) for part in parts if len(part) > 1), key=lambda part: int(part[0]))


def _likeness_of_file(path: Path) -> bytes:
    try:
        return likeness_of(open_untrusted(path, at_least=DECODED_SIDE))
    except UnreadableImageError:
        return b""


def _duplicate_pairs(images: ImageHashes) -> Iterator[NDArray[np.int64]]:
    """Pairs [2, n] of duplicates, each pair once."""
    rows = np.flatnonzero(images.readable)
    parts = np.ascontiguousarray(images.hashes[rows])
    bits = parts.view(np.uint64).reshape(-1)
    # At most 6 other bits lie in at most 6 of 8 bytes: two bytes at least are equal.
    for a, b in combinations(range(HASH_BYTES), 2):
        for i, j in _pairs_of_equal(parts[:, a].astype(np.uint16) << 8 | parts[:, b]):
            near = np.bitwise_count(bits[i] ^ bits[j]) <= MOST_BITS
            i, j = i[near], j[near]
            new = (parts[i, :b] == parts[j, :b]).sum(1) == 1  # `a` and `b` are the first bytes that are equal
            i, j = rows[i[new]], rows[j[new]]
            same = _differences(images.thumbnails[i], images.thumbnails[j]) <= MOST_DIFFERENCE
            if same.any():
                yield np.stack([i[same], j[same]])


def _pairs_of_equal(keys: NDArray[np.uint16]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Positions (i, j) of all pairs of equal keys, at most as many at a time as there are keys."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    at = np.arange(len(order))
    for step in range(1, len(order)):
        at = at[: np.searchsorted(at, len(order) - step)]
        at = at[ordered[at] == ordered[at + step]]
        if not len(at):
            return
        yield order[at], order[at + step]


def _differences(thumbnails: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[N] mean difference of two lists of thumbnails, grey levels."""
    a, b = (values.astype(np.float32) for values in (thumbnails, others))
    distance: NDArray[np.float32] = np.abs((a - a.mean(1, keepdims=True)) - (b - b.mean(1, keepdims=True))).mean(1)
    return distance
