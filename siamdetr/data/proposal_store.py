"""The file of proposals: Arrow IPC, memory-mapped, found by the content of the image file. Nothing in it is ever executed.

One row an image file, sorted by content key: key (16 bytes of SHA-256), stamp (16 bytes that name path, size and time of the file, so that
an unchanged data set is recognised without reading it), height and width, whether the boxes are a fallback, and the boxes as 16-bit fractions:
8 bytes a box, 1.1 GB for 1.3 million images with 100 boxes each (`benchmarks/proposal_store.py`). Keys are hashes and so spread evenly: a column of as many
entries as rows says where each equal share of the key space begins, so that a look-up reads one or two keys, however many there are.
Several files (the shards of a cluster) open as one store, by listing them. While a long computation runs, finished parts lie beside the file as `NAME.part-*`.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from siamdetr.data.images import KEY_BYTES
from siamdetr.data.problems import DataError

FORMAT = "2"
UNITS = 65535  # of the stored fractions: below .01 pixel in an image of 1300 pixels

Fractions = NDArray[np.uint16]  # [n, 4] (x0, y0, x1, y1) in units of 1/65535 of the image

SCHEMA = pa.schema(
    [
        ("key", pa.binary(KEY_BYTES)),
        ("stamp", pa.binary(KEY_BYTES)),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("fallback", pa.uint8()),
        ("fanout", pa.int32()),
        ("boxes", pa.large_list(pa.uint16())),
    ]
)


@dataclass(frozen=True)
class StoredImage:
    """One row: stamp, key, (height, width) in pixels, boxes [n, 4] uint16 (x0, y0, x1, y1) in units of 1/65535, fallback 0..2."""

    stamp: bytes
    key: bytes
    size: tuple[int, int]
    boxes: Fractions
    fallback: int = 0

    @classmethod
    def of(
        cls, stamp: bytes, key: bytes, size: tuple[int, int], boxes: NDArray[np.float32], fallback: int = 0
    ) -> StoredImage:
        """A row of boxes [n, 4] that are fractions 0..1."""
        return cls(stamp, key, size, np.rint(np.clip(boxes, 0, 1) * UNITS).astype(np.uint16), fallback)


@dataclass(frozen=True, eq=False)
class Rows:
    """Many rows as arrays: keys and stamps [n, 16] uint8, sizes [n, 2], fallbacks [n], values [m, 4] with offsets [n + 1] into them."""

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

    def sorted(self) -> Rows:
        """By key; rows with one key by stamp. Of rows with one key and stamp the first remains."""
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


class ProposalStore:
    """Proposals of many images, looked up by the key of the file's content. Open with `ProposalStore.open`.

    The files are memory-mapped: opening reads none of them, and all processes share their pages.
    """

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self.paths = paths
        self._files = [_StoreFile(path) for path in paths]

    @classmethod
    def open(cls, *paths: str | Path) -> ProposalStore:
        """Opens a file of proposals, or several (shards) as one.

        Raises:
            DataError: there is no such file, or it is not one of ours, or it is broken off.
        """
        return cls(tuple(map(Path, paths)))

    def __reduce__(self) -> tuple[type[ProposalStore], tuple[tuple[Path, ...]]]:
        return ProposalStore, (self.paths,)  # worker processes open the files themselves

    def __len__(self) -> int:
        return sum(map(len, self._files))

    def __repr__(self) -> str:
        return f"ProposalStore({len(self)} images, {self.num_boxes} boxes, {', '.join(map(str, self.paths))})"

    @property
    def num_boxes(self) -> int:
        """Of all images together."""
        return sum(len(file.values) for file in self._files)

    @property
    def recipe(self) -> str:
        """How the boxes were computed."""
        return "; ".join(dict.fromkeys(file.recipe for file in self._files))

    def boxes(self, key: bytes) -> NDArray[np.float32] | None:
        """[n, 4] xyxy pixels of the upright original image, best first; None: the image is not in the store.

        Args:
            key: `siamdetr.data.images.content_key` of the image file.
        """
        found = self.find(key)
        return None if found is None else _fractions(found) * np.asarray([*found.size[::-1]] * 2, dtype=np.float32)

    def fractions(self, key: bytes) -> NDArray[np.float32] | None:
        """[n, 4] (x0, y0, x1, y1) fractions of the image, best first; None: the image is not in the store."""
        found = self.find(key)
        return None if found is None else _fractions(found)

    def find(self, key: bytes) -> StoredImage | None:
        """The row of a content key."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"proposals: got a key of {len(key)} bytes, expected {KEY_BYTES}, as content_key gives")
        return next((found for file in self._files if (found := file.find(key)) is not None), None)

    def rows(self) -> Rows:
        """Every row, the files one after the other."""
        return concatenate_rows([file.rows() for file in self._files])

    def stamps(self) -> frozenset[bytes]:
        """Stamps of all image files in it."""
        return frozenset().union(*(file.rows().stamp_set() for file in self._files))

    def fallback_counts(self) -> tuple[int, int]:
        """Images whose boxes were found only after sharpening, and images that have the centred box."""
        counts = sum((np.bincount(file.fallbacks, minlength=3) for file in self._files), np.zeros(3, int))
        return int(counts[1]), int(counts[2])


class _StoreFile:
    """One memory-mapped file."""

    def __init__(self, path: Path) -> None:
        self._batch = batch = _read(path)  # keeps the mapped memory alive
        lists = batch.column(6)
        self._keys, self._stamps = _fixed(batch.column(0)), _fixed(batch.column(1))
        self._sides = batch.column(2).to_numpy(), batch.column(3).to_numpy()
        self._fanout = batch.column(5).to_numpy()
        count = len(batch) + 1 if len(batch) else 0
        self._offsets = np.frombuffer(lists.buffers()[1], dtype=np.int64, count=count)  # 4 a box
        self.values: Fractions = lists.values.to_numpy().reshape(-1, 4)
        self.fallbacks = batch.column(4).to_numpy()
        self.recipe = str((batch.schema.metadata or {}).get(b"recipe", b"").decode())

    def __len__(self) -> int:
        return len(self._keys)

    def rows(self) -> Rows:
        """All of it, over the file's own memory where that is possible."""
        offsets = self._offsets // 4 if len(self) else np.zeros(1, dtype=np.int64)
        sizes = np.stack(self._sides, axis=1)
        return Rows(self._keys, self._stamps, sizes, self.fallbacks, offsets, self.values)

    def find(self, key: bytes) -> StoredImage | None:
        """The first row of a key."""
        count = len(self)
        if count == 0:
            return None
        row = int(self._fanout[int.from_bytes(key[:8], "big") * count >> 64])
        while row < count and (there := self._keys[row].tobytes()) <= key:
            if there == key:
                return self._stored(row)
            row += 1
        return None

    def _stored(self, row: int) -> StoredImage:
        height, width = (int(side[row]) for side in self._sides)
        boxes = self.values[self._offsets[row] // 4 : self._offsets[row + 1] // 4]
        return StoredImage(
            self._stamps[row].tobytes(), self._keys[row].tobytes(), (height, width), boxes, int(self.fallbacks[row])
        )


def file_stamp(path: Path) -> bytes:
    """16 bytes that name a file's path, size and time of change; zeros when there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return bytes(KEY_BYTES)
    text = f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:KEY_BYTES]


def read_known(path: Path, recipe: str) -> list[ProposalStore]:
    """What is on disk for this recipe: the store and the parts of an interrupted run. Other recipes count as nothing.

    Raises:
        DataError: `path` is there and is not a file of proposals.
    """
    known = [ProposalStore.open(path)] if path.exists() else []
    for part in _parts(path):
        try:
            known.append(ProposalStore.open(part))
        except DataError:
            part.unlink(missing_ok=True)  # broken off, or from another version: computed again
    return [store for store in known if store.recipe == recipe]


def write_part(path: Path, recipe: str, rows: Rows) -> Path:
    """Puts rows beside the store, until `write_store` takes them in."""
    part = path.with_name(f"{path.name}.part-{uuid.uuid4().hex}")
    _write(part, recipe, rows)
    return part


def write_store(path: Path, recipe: str, rows: Rows) -> None:
    """Writes the store anew, whole, and removes the parts and what a killed run left half-written."""
    _write(path, recipe, rows)
    for left in (*_parts(path), *path.parent.glob(f".{path.name}.*.tmp")):
        left.unlink(missing_ok=True)


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.part-*")) if path.parent.exists() else []


def _write(path: Path, recipe: str, rows: Rows) -> None:
    """Atomically: a temporary file in the same folder, flushed to disk, then renamed.

    Raises:
        DataError: the disk is full, or nothing may be written there.
    """
    rows = rows.sorted()
    columns = [
        _fixed_column(rows.keys),
        _fixed_column(rows.stamps),
        pa.array(np.ascontiguousarray(rows.sizes[:, 0])),
        pa.array(np.ascontiguousarray(rows.sizes[:, 1])),
        pa.array(rows.fallbacks),
        pa.array(_fanout(rows.keys)),
        pa.LargeListArray.from_arrays(pa.array(rows.offsets * 4), pa.array(rows.values.reshape(-1))),
    ]
    schema = SCHEMA.with_metadata({"siamdetr.proposals": FORMAT, "recipe": recipe})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            with pa.ipc.new_file(file, schema) as writer:
                writer.write_batch(pa.record_batch(columns, schema=schema))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); what was written before is kept. Make room there, or choose another place"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _fanout(keys: NDArray[np.uint8]) -> NDArray[np.int32]:
    """[n] the first row of each of n equal shares of the key space; share s holds the keys whose first 8 bytes k give floor(k n / 2^64) = s."""
    count = len(keys)
    first = keys[:, :8].copy().view(">u8").reshape(-1).astype(np.uint64)
    high, low = first >> np.uint64(32), first & np.uint64(0xFFFFFFFF)  # the product needs more than 64 bits
    n = np.uint64(count)
    share = (high * n + (low * n >> np.uint64(32))) >> np.uint64(32)
    return np.searchsorted(share, np.arange(count, dtype=np.uint64)).astype(np.int32)


def _read(path: Path) -> pa.RecordBatch:
    try:
        with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
            metadata = reader.schema.metadata or {}
            if metadata.get(b"siamdetr.proposals") != FORMAT.encode() or reader.num_record_batches != 1:
                raise DataError(
                    f"{path}: not a file of proposals that this version reads; delete it, and it is computed again"
                )
            batch: pa.RecordBatch = reader.get_batch(0)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file of proposals; `siamdetr proposals DATA -o {path}` makes it") from None
    except (pa.ArrowException, OSError) as error:
        cause = " ".join(str(error).split())
        raise DataError(
            f"{path}: not a file of proposals, or broken off ({cause}); delete it, and it is computed again"
        ) from None
    return batch


def _fractions(image: StoredImage) -> NDArray[np.float32]:
    return image.boxes.astype(np.float32) / np.float32(UNITS)


def _fixed(column: pa.Array) -> NDArray[np.uint8]:
    """[n, 16] bytes over the column's own memory."""
    size = len(column) * KEY_BYTES
    flat = np.frombuffer(column.buffers()[1], dtype=np.uint8, count=size) if size else np.zeros(0, dtype=np.uint8)
    return flat.reshape(-1, KEY_BYTES)


def _fixed_column(values: NDArray[np.uint8]) -> pa.Array:
    buffer = pa.py_buffer(np.ascontiguousarray(values).tobytes())
    return pa.Array.from_buffers(pa.binary(KEY_BYTES), len(values), [None, buffer])


def _byte_rows(values: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(values), dtype=np.uint8).reshape(-1, KEY_BYTES)


def _as_bytes(rows: NDArray[np.uint8]) -> list[bytes]:
    whole = rows.tobytes()
    return [whole[start : start + KEY_BYTES] for start in range(0, len(whole), KEY_BYTES)]


def _words(rows: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The two halves of 16-byte rows as numbers, the less significant first: `lexsort` takes its last key first."""
    words = np.ascontiguousarray(rows).view(">u8").reshape(-1, 2).astype(np.uint64)
    return words[:, 1], words[:, 0]
