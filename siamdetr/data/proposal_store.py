"""The file of proposals: Arrow IPC, memory-mapped, found by the content of the image file. Nothing in it is ever executed.

One row an image file, sorted by content key: key (16 bytes of SHA-256), stamp (16 bytes that name path, size and time of the file, so that
an unchanged data set is recognised without reading it), height and width, and the boxes as 16-bit fractions: 8 bytes a box, 1.1 GB for 1.3 million
images with 100 boxes each. While a long computation runs, finished parts lie beside the file as `NAME.part-*`.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from siamdetr.data.images import KEY_BYTES
from siamdetr.data.problems import DataError

FORMAT = "1"
UNITS = 65535  # of the stored fractions: below .01 pixel in an image of 1300 pixels

Fractions = NDArray[np.uint16]  # [n, 4] (x0, y0, x1, y1) in units of 1/65535 of the image

SCHEMA = pa.schema(
    [
        ("key", pa.binary(KEY_BYTES)),
        ("stamp", pa.binary(KEY_BYTES)),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("boxes", pa.large_list(pa.uint16())),
    ]
)


@dataclass(frozen=True)
class StoredImage:
    """One row: stamp, key, (height, width) in pixels, boxes [n, 4] uint16 (x0, y0, x1, y1) in units of 1/65535."""

    stamp: bytes
    key: bytes
    size: tuple[int, int]
    boxes: Fractions

    @classmethod
    def of(cls, stamp: bytes, key: bytes, size: tuple[int, int], boxes: NDArray[np.float32]) -> StoredImage:
        """A row of boxes [n, 4] that are fractions 0..1."""
        return cls(stamp, key, size, np.rint(np.clip(boxes, 0, 1) * UNITS).astype(np.uint16))


class ProposalStore:
    """Proposals of many images, looked up by the key of the file's content in O(log n). Open with `ProposalStore.open`.

    The file is memory-mapped: opening costs nothing, and all processes share its pages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        batch = _read(path)
        self._recipe = _recipe(batch)
        self._batch = batch  # keeps the mapped memory alive
        self._keys = _fixed(batch.column(0))
        self._stamps = _fixed(batch.column(1))
        self._sizes = (batch.column(2).to_numpy(), batch.column(3).to_numpy())
        lists = batch.column(4)
        self._offsets = np.frombuffer(lists.buffers()[1], dtype=np.int64, count=len(batch) + 1) if len(batch) else None
        self._values: Fractions = lists.values.to_numpy().reshape(-1, 4)

    @classmethod
    def open(cls, path: str | Path) -> ProposalStore:
        """Opens a file of proposals.

        Raises:
            DataError: there is no such file, or it is not one of ours, or it is broken off.
        """
        return cls(Path(path))

    def __reduce__(self) -> tuple[type[ProposalStore], tuple[Path]]:
        return ProposalStore, (self.path,)  # worker processes open the file themselves

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"ProposalStore({len(self)} images, {len(self._values)} boxes, {self.path})"

    @property
    def recipe(self) -> str:
        """How the boxes were computed."""
        return self._recipe

    def boxes(self, key: bytes) -> NDArray[np.float32] | None:
        """[n, 4] xyxy pixels of the upright original image, best first; None: the image is not in the file.

        Args:
            key: `siamdetr.data.images.content_key` of the image file.
        """
        row = self._row(key)
        if row is None:
            return None
        height, width = (int(side[row]) for side in self._sizes)
        return self._fractions(row) * np.asarray([width, height] * 2, dtype=np.float32)

    def fractions(self, key: bytes) -> NDArray[np.float32] | None:
        """[n, 4] (x0, y0, x1, y1) fractions of the image, best first; None: the image is not in the file."""
        row = self._row(key)
        return None if row is None else self._fractions(row)

    def rows(self) -> Iterator[StoredImage]:
        """Every row, in order of the keys."""
        for row in range(len(self)):
            yield self._stored(row)

    def find(self, key: bytes) -> StoredImage | None:
        """The row of a content key."""
        row = self._row(key)
        return None if row is None else self._stored(row)

    def stamps(self) -> frozenset[bytes]:
        """Stamps of all files in it."""
        return frozenset(_bytes(self._stamps, row) for row in range(len(self)))

    def _row(self, key: bytes) -> int | None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"proposals: got a key of {len(key)} bytes, expected {KEY_BYTES}, as content_key gives")
        row = int(np.searchsorted(self._keys, np.bytes_(key)))
        return row if row < len(self._keys) and _bytes(self._keys, row) == key else None

    def _quantised(self, row: int) -> Fractions:
        assert self._offsets is not None
        return self._values[self._offsets[row] // 4 : self._offsets[row + 1] // 4]

    def _fractions(self, row: int) -> NDArray[np.float32]:
        return self._quantised(row).astype(np.float32) / np.float32(UNITS)

    def _stored(self, row: int) -> StoredImage:
        height, width = (int(side[row]) for side in self._sizes)
        key, stamp = _bytes(self._keys, row), _bytes(self._stamps, row)
        return StoredImage(stamp, key, (height, width), self._quantised(row))


class KnownImages:
    """What earlier runs and this one have computed: the store on disk, and rows that are not in it yet."""

    def __init__(self, store: ProposalStore | None, rows: Iterable[StoredImage]) -> None:
        self._store = store
        self._stamps = set(store.stamps()) if store is not None else set()
        self._new: dict[bytes, StoredImage] = {}
        self._by_key: dict[bytes, StoredImage] = {}
        self.add(rows)

    @property
    def changed(self) -> bool:
        """Whether there are rows that the store does not have."""
        return bool(self._new)

    def add(self, rows: Iterable[StoredImage]) -> None:
        """Adds rows; a stamp that is there already is not added again."""
        for row in rows:
            if row.stamp not in self._stamps:
                self._stamps.add(row.stamp)
                self._new[row.stamp] = row
                self._by_key.setdefault(row.key, row)

    def has_stamp(self, stamp: bytes) -> bool:
        """Whether this very file is known."""
        return stamp in self._stamps

    def find(self, key: bytes) -> StoredImage | None:
        """A row with this content, under whatever name."""
        found = self._by_key.get(key)
        return found if found is not None or self._store is None else self._store.find(key)

    def rows(self) -> list[StoredImage]:
        """All rows, sorted by key."""
        earlier = self._store.rows() if self._store is not None else ()
        return sorted((*earlier, *self._new.values()), key=lambda row: (row.key, row.stamp))


def file_stamp(path: Path) -> bytes:
    """16 bytes that name a file's path, size and time of change; zeros when there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return bytes(KEY_BYTES)
    text = f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:KEY_BYTES]


def read_known(path: Path, recipe: str) -> KnownImages:
    """What is on disk for this recipe: the store and the parts of an interrupted run. Other recipes count as nothing.

    Raises:
        DataError: `path` is there and is not a file of proposals.
    """
    store = ProposalStore.open(path) if path.exists() else None
    if store is not None and store.recipe != recipe:
        store = None
    rows: list[StoredImage] = []
    for part in _parts(path):
        try:
            rows += _rows_of(part, recipe)
        except DataError:
            part.unlink(missing_ok=True)  # from another recipe or version: computed again
    return KnownImages(store, rows)


def write_part(path: Path, recipe: str, rows: list[StoredImage]) -> None:
    """Puts rows beside the store, until `write_store` takes them in."""
    _write(path.with_name(f"{path.name}.part-{uuid.uuid4().hex}"), recipe, rows)


def write_store(path: Path, recipe: str, known: KnownImages) -> None:
    """Writes the store anew, with everything known."""
    _write(path, recipe, known.rows())


def clear_parts(path: Path) -> None:
    """Removes the parts, once the store has them."""
    for part in _parts(path):
        part.unlink(missing_ok=True)


def _rows_of(path: Path, recipe: str) -> list[StoredImage]:
    store = ProposalStore.open(path)
    if store.recipe != recipe:
        raise DataError(f"{path}: computed as '{store.recipe}', expected '{recipe}'")
    return list(store.rows())


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.part-*")) if path.parent.exists() else []


def _write(path: Path, recipe: str, rows: list[StoredImage]) -> None:
    """Atomically: a temporary file in the same folder, flushed to disk, then renamed."""
    rows = sorted(rows, key=lambda row: (row.key, row.stamp))
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([row.boxes.size for row in rows], out=offsets[1:])
    values = np.concatenate([row.boxes.reshape(-1) for row in rows]) if rows else np.zeros(0, dtype=np.uint16)
    columns = [
        pa.array([row.key for row in rows], type=pa.binary(KEY_BYTES)),
        pa.array([row.stamp for row in rows], type=pa.binary(KEY_BYTES)),
        pa.array([row.size[0] for row in rows], type=pa.int32()),
        pa.array([row.size[1] for row in rows], type=pa.int32()),
        pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values)),
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
    finally:
        temporary.unlink(missing_ok=True)


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
        raise DataError(f"{path}: no such file of proposals; `siamdetr train` computes it") from None
    except (pa.ArrowException, OSError) as error:
        cause = " ".join(str(error).split())
        raise DataError(
            f"{path}: not a file of proposals, or broken off ({cause}); delete it, and it is computed again"
        ) from None
    return batch


def _recipe(batch: pa.RecordBatch) -> str:
    return str((batch.schema.metadata or {}).get(b"recipe", b"").decode())


def _fixed(column: pa.Array) -> NDArray[np.bytes_]:
    """[n] fixed-size byte strings over the column's own memory."""
    kind = np.dtype(f"S{KEY_BYTES}")
    return np.frombuffer(column.buffers()[1], dtype=kind, count=len(column)) if len(column) else np.zeros(0, dtype=kind)


def _bytes(column: NDArray[np.bytes_], row: int) -> bytes:
    """The 16 bytes at `row`; numpy leaves zero bytes at the end out."""
    return bytes(column[row]).ljust(KEY_BYTES, b"\0")
