"""Near-duplicate images: the same picture in another size, compression or slightly other exposure.

An image is a difference hash of 64 bits (is a cell of a 9 x 8 grey picture brighter than the next?) and a grey
thumbnail. Two images are duplicates where few bits differ and the thumbnails agree. Candidates are found by parts of
the hash that are equal, so that no other pairs are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from siamdetr.errors import UnreadableImageError
from siamdetr.images.open import open_untrusted
from siamdetr.system.progress import Progress

MOST_BITS = 6  # of 64 that may differ
MOST_DIFFERENCE = 8.0  # mean difference of the thumbnails, grey levels of 255, after their means are made equal
_PARTS = 8  # bytes of the hash; with at most 6 other bits, at least two of them are equal
_THUMBNAIL = 16  # pixels a side
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


def hash_images(paths: Sequence[Path], *, threads: int = 2, progress: Progress | None = None) -> ImageHashes:
    """Hash image files, several at a time; JPEGs are decoded at a fraction of their size."""
    hashes = np.zeros((len(paths), _PARTS), dtype=np.uint8)
    thumbnails = np.zeros((len(paths), _THUMBNAIL**2), dtype=np.uint8)
    readable = np.zeros(len(paths), dtype=bool)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(paths), _BATCH):
            for i, found in enumerate(pool.map(_hash_file, paths[start : start + _BATCH]), start):
                if found is not None:
                    hashes[i], thumbnails[i] = found
                    readable[i] = True
            if progress is not None:
                progress(min(start + _BATCH, len(paths)), len(paths))
    return ImageHashes(hashes, thumbnails, readable)


def find_duplicates(images: ImageHashes) -> NDArray[np.int64]:
    """[N] group of each image: duplicates, and duplicates of duplicates, share a number.

    Groups count from 0.
    """
    count = len(images.hashes)
    links = [link for part in range(_PARTS) for link in links_of_part(images, part)]
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


def _hash_file(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    try:
        grey = open_untrusted(path, at_least=64).convert("L")
    except UnreadableImageError:
        return None
    cells = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    small = np.asarray(grey.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX), dtype=np.uint8)
    return np.packbits(cells[:, 1:] > cells[:, :-1]), small.ravel()


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
