"""Rows of the proposals file in memory: one image, or many as arrays."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siamdetr.images.open import KEY_BYTES

UNITS = 65535  # of the stored fractions: below .01 pixel in an image of 1300 pixels

Fractions = NDArray[np.uint16]  # [n, 4] (x0, y0, x1, y1) in units of 1/65535 of the image


@dataclass(frozen=True)
class StoredImage:
    """One row: the proposals of one image.

    Attributes:
        stamp: hash of path, size and time of the file, 16 bytes.
        key: hash of the file's content, 16 bytes.
        size: (height, width) in pixels.
        boxes: [n, 4] uint16 (x0, y0, x1, y1) in units of 1/65535.
        fallback: 0..2, how far the method fell back.
    """

    stamp: bytes
    key: bytes
    size: tuple[int, int]
    boxes: Fractions
    fallback: int = 0

    @classmethod
    def of(
        cls, stamp: bytes, key: bytes, size: tuple[int, int], boxes: NDArray[np.float32], fallback: int = 0
    ) -> StoredImage:
        """A row from boxes [n, 4], fractions 0..1."""
        return cls(stamp, key, size, np.rint(np.clip(boxes, 0, 1) * UNITS).astype(np.uint16), fallback)

    def fractions(self) -> NDArray[np.float32]:
        """[n, 4] the boxes as fractions 0..1."""
        return self.boxes.astype(np.float32) / np.float32(UNITS)

    @property
    def checksum(self) -> int:
        """CRC-32 of the row, as of `Rows.checksums`."""
        head = self.key + self.stamp + struct.pack("<2iB", *self.size, self.fallback)
        return zlib.crc32(self.boxes.astype("<u2").tobytes(), zlib.crc32(head))


@dataclass(frozen=True, eq=False)
class Rows:
    """Many rows as arrays.

    Keys and stamps [n, 16] uint8, sizes [n, 2], fallbacks [n], values [m, 4], and offsets [n + 1] into the values.
    """

    keys: NDArray[np.uint8]
    stamps: NDArray[np.uint8]
    sizes: NDArray[np.int32]
    fallbacks: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    values: Fractions

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of(cls, images: Sequence[StoredImage]) -> Rows:
        """The rows of single images, in their order."""
        offsets = np.zeros(len(images) + 1, dtype=np.int64)
        np.cumsum([len(image.boxes) for image in images], out=offsets[1:])
        boxes = [image.boxes for image in images]
        return cls(
            keys=_byte_rows([image.key for image in images]),
            stamps=_byte_rows([image.stamp for image in images]),
            sizes=np.asarray([image.size for image in images], dtype=np.int32).reshape(-1, 2),
            fallbacks=np.asarray([image.fallback for image in images], dtype=np.uint8),
            offsets=offsets,
            values=np.concatenate(boxes) if boxes else np.zeros((0, 4), dtype=np.uint16),
        )

    def stamp_set(self) -> set[bytes]:
        """All stamps."""
        return set(_as_bytes(self.stamps))

    def checksums(self) -> NDArray[np.uint32]:
        """[n] CRC-32 of each row.

        Of key, stamp, height and width (4 bytes each), fallback and boxes, all little-endian.
        """
        sizes = np.ascontiguousarray(self.sizes, dtype="<i4").view(np.uint8).reshape(-1, 8)
        heads = np.concatenate([self.keys, self.stamps, sizes, self.fallbacks[:, None]], axis=1)
        boxes = memoryview(np.ascontiguousarray(self.values, dtype="<u2").reshape(-1).view(np.uint8).data)
        starts = (self.offsets * 8).tolist()
        rows = zip(heads, itertools.pairwise(starts), strict=True)
        crcs = (zlib.crc32(boxes[start:stop], zlib.crc32(head.tobytes())) for head, (start, stop) in rows)
        return np.fromiter(crcs, dtype=np.uint32, count=len(self))

    def fanout(self) -> NDArray[np.int32]:
        """[n] the first row of each of n equal shares of the key space; the rows are sorted.

        Share s holds the keys whose first 8 bytes k give floor(k n / 2^64) = s.
        """
        count = len(self)
        first = self.keys[:, :8].copy().view(">u8").reshape(-1).astype(np.uint64)
        high, low = first >> np.uint64(32), first & np.uint64(0xFFFFFFFF)  # the product needs more than 64 bits
        n = np.uint64(count)
        share = (high * n + (low * n >> np.uint64(32))) >> np.uint64(32)
        return np.searchsorted(share, np.arange(count, dtype=np.uint64)).astype(np.int32)

    def sorted(self) -> Rows:
        """The rows sorted by key, then by stamp; of rows with equal key and stamp the first is kept."""
        order = np.lexsort((*_words(self.stamps), *_words(self.keys)))
        both = np.concatenate([self.keys, self.stamps], axis=1)[order]
        order = order[np.concatenate([[True], (both[1:] != both[:-1]).any(axis=1)])[: len(order)]]
        counts = np.diff(self.offsets)[order]
        offsets = np.zeros(len(order) + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        boxes = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][order] - offsets[:-1], counts)
        return Rows(
            self.keys[order],
            self.stamps[order],
            self.sizes[order],
            self.fallbacks[order],
            offsets,
            self.values[boxes],
        )


def concatenate_rows(parts: Sequence[Rows]) -> Rows:
    """All rows of the parts, one after the other."""
    parts = parts or [Rows.of([])]
    starts = np.cumsum([0, *(part.offsets[-1] for part in parts)])
    shifted = [part.offsets[:-1] + start for part, start in zip(parts, starts[:-1], strict=True)]
    return Rows(
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.stamps for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.fallbacks for part in parts]),
        np.concatenate([*shifted, starts[-1:]]),
        np.concatenate([part.values for part in parts]),
    )


def _byte_rows(values: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(values), dtype=np.uint8).reshape(-1, KEY_BYTES)


def _as_bytes(rows: NDArray[np.uint8]) -> list[bytes]:
    whole = rows.tobytes()
    return [whole[start : start + KEY_BYTES] for start in range(0, len(whole), KEY_BYTES)]


def _words(rows: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The two halves of 16-byte rows as numbers, the less significant first, as `lexsort` needs."""
    words = np.ascontiguousarray(rows).view(">u8").reshape(-1, 2).astype(np.uint64)
    return words[:, 1], words[:, 0]
