"""Near-duplicate images: the same picture in another size, compression or slightly other exposure.

Two images are duplicates where few bits of their hashes differ and their thumbnails agree (`images.likeness`).
Candidates are found by bytes of the hash that are equal, so that no other pairs are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
    links = [link for part in range(HASH_BYTES) for link in links_of_part(images, part)]
    starts = np.concatenate([np.full(len(others), first) for first, others in links] or [np.zeros(0, dtype=np.int64)])
    ends = np.concatenate([others for _, others in links] or [np.zeros(0, dtype=np.int64)])
    graph = coo_array((np.ones(len(starts), dtype=bool), (starts, ends)), shape=(count, count))
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


def links_of_part(images: ImageHashes, part: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Links (image, its duplicates) among the images whose byte `part` is the same.

    An image is reached once, by a walk from duplicate to duplicate. So ten thousand pictures of one scene have as many
    links, not fifty million.
    """
    keys = images.hashes[:, part]
    words = images.hashes.view(np.uint64)[:, 0]
    for value in np.unique(keys[images.readable]):
        rest = np.flatnonzero((keys == value) & images.readable)
        reached: list[int] = []
        while len(rest):
            if not reached:
                reached, rest = [int(rest[0])], rest[1:]
            first = reached.pop()
            near = np.flatnonzero(np.bitwise_count(words[rest] ^ words[first]) <= MOST_BITS)
            if not len(near):
                continue
            same = near[_differences(images.thumbnails[rest[near]], images.thumbnails[first]) <= MOST_DIFFERENCE]
            if len(same):
                yield first, rest[same]
                reached += rest[same].tolist()
                rest = np.delete(rest, same)


def _differences(thumbnails: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float32]:
    a = thumbnails.astype(np.float32)
    b = other.astype(np.float32)
    distance: NDArray[np.float32] = np.abs((a - a.mean(1, keepdims=True)) - (b - b.mean())).mean(1)
    return distance
