"""The proposals file: Arrow IPC, memory-mapped, looked up by the content of the image file.

Nothing in it is executed. It has one row per image file, sorted by key:
- key: 16 bytes of the content's SHA-256;
- stamp: 16 bytes that name path, size and time of the file, so that an unchanged data set is not read again;
- height and width, and whether the boxes are a fallback;
- boxes as 16-bit fractions, 8 bytes per box: 1.1 GB for 1.3 million images with 100 boxes each
  (`benchmarks/proposal_store.py`);
- checksum: CRC-32 of the row, verified when the row is read.

Keys are hashes, and so evenly distributed. A column with one entry per row says where each equal share of the key space
begins, so that a look-up reads one or two keys, whatever their number.
Several files (the shards of a cluster) open as one store. `writing.py` writes them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from siamdetr.errors import DataError
from siamdetr.images.open import KEY_BYTES
from siamdetr.proposals.rows import Fractions, Rows, StoredImage, concatenate_rows

FORMAT = "2"
SCHEMA = pa.schema(
    [
        ("key", pa.binary(KEY_BYTES)),
        ("stamp", pa.binary(KEY_BYTES)),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("fallback", pa.uint8()),
        ("fanout", pa.int32()),
        ("boxes", pa.large_list(pa.uint16())),
        ("checksum", pa.uint32()),  # `Rows.checksums`; files of siamdetr 0.1.0 lack this column
    ]
)
_SCHEMA_OF_0_1 = pa.schema(list(SCHEMA)[:7])
_REMEDY = "delete it, and it is computed again"


class ProposalStore:
    """Proposals of many images, looked up by the key of the file's content.

    Open with `ProposalStore.open`.

    The files are memory-mapped: opening reads no rows, and all processes share their pages.
    """

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self.paths = paths
        self._files = [_StoreFile(path) for path in paths]

    @classmethod
    def open(cls, *paths: str | Path) -> ProposalStore:
        """Open a proposals file, or several (shards) as one.

        Raises:
            DataError: there is no such file, it is not a proposals file, or it is truncated.
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
        """The number of boxes of all images."""
        return sum(len(file.values) for file in self._files)

    @property
    def recipe(self) -> str:
        """How the boxes were computed."""
        return "; ".join(dict.fromkeys(file.recipe for file in self._files))

    def boxes(self, key: bytes) -> NDArray[np.float32] | None:
        """[n, 4] xyxy pixels of the upright original image, best first; None: the image is not in the store.

        Args:
            key: `siamdetr.images.open.content_key` of the image file.
        """
        found = self.find(key)
        return None if found is None else found.fractions() * np.asarray([*found.size[::-1]] * 2, dtype=np.float32)

    def fractions(self, key: bytes) -> NDArray[np.float32] | None:
        """[n, 4] (x0, y0, x1, y1) fractions of the image, best first; None: the image is not in the store."""
        found = self.find(key)
        return None if found is None else found.fractions()

    def find(self, key: bytes) -> StoredImage | None:
        """The row of a content key.

        Raises:
            DataError: the row is damaged.
        """
        if len(key) != KEY_BYTES:
            raise ValueError(f"proposals: got a key of {len(key)} bytes, expected {KEY_BYTES}, as content_key gives")
        return next((found for file in self._files if (found := file.find(key)) is not None), None)

    def rows(self) -> Rows:
        """All rows, file after file, not verified."""
        return concatenate_rows([file.rows() for file in self._files])

    def stamps(self) -> frozenset[bytes]:
        """The stamps of all image files in the store."""
        return frozenset().union(*(file.rows().stamp_set() for file in self._files))

    def verify(self) -> ProposalStore:
        """Read everything once, and return itself.

        Raises:
            DataError: a row is damaged.
        """
        for file in self._files:
            file.verify()
        return self

    def fallback_counts(self) -> tuple[int, int]:
        """The number of images with boxes only after sharpening, and of those with the centred box."""
        counts = sum((np.bincount(file.fallbacks, minlength=3) for file in self._files), np.zeros(3, int))
        return int(counts[1]), int(counts[2])


class _StoreFile:
    """One memory-mapped file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._batch = batch = _read(path)  # keeps the mapped memory alive
        lists = batch.column(6)
        self._keys, self._stamps = _fixed(batch.column(0)), _fixed(batch.column(1))
        self._sides = batch.column(2).to_numpy(), batch.column(3).to_numpy()
        self._fanout = batch.column(5).to_numpy()
        count = len(batch) + 1 if len(batch) else 0
        self._offsets = np.frombuffer(lists.buffers()[1], dtype=np.int64, count=count)  # 4 a box
        self.values: Fractions = lists.values.to_numpy().reshape(-1, 4)
        self.fallbacks = batch.column(4).to_numpy()
        self._checksums = batch.column(7).to_numpy() if batch.num_columns > 7 else None
        self.recipe = str((batch.schema.metadata or {}).get(b"recipe", b"").decode())

    def __len__(self) -> int:
        return len(self._keys)

    def rows(self) -> Rows:
        """All rows, in the file's memory where that is possible."""
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

    def verify(self) -> None:
        """Raise DataError where a row is damaged or out of its place."""
        offsets = self._offsets
        if len(self) and (offsets[0] != 0 or (np.diff(offsets) < 0).any() or (offsets % 4).any()):
            raise DataError(f"{self._path}: damaged: its rows are not where they were written; {_REMEDY}")
        rows = self.rows()
        if self._checksums is not None and (damaged := int((rows.checksums() != self._checksums).sum())):
            raise DataError(
                f"{self._path}: damaged: {damaged:,} of {len(self):,} rows do not have the CRC-32 they were written with; {_REMEDY}"
            )
        if (rows.fanout() != self._fanout).any():
            raise DataError(f"{self._path}: damaged: its rows are not found where they are; {_REMEDY}")

    def _stored(self, row: int) -> StoredImage:
        height, width = (int(side[row]) for side in self._sides)
        boxes = self.values[self._offsets[row] // 4 : self._offsets[row + 1] // 4]
        stored = StoredImage(
            self._stamps[row].tobytes(), self._keys[row].tobytes(), (height, width), boxes, int(self.fallbacks[row])
        )
        if self._checksums is not None and stored.checksum != self._checksums[row]:
            raise DataError(f"{self._path}: damaged: a row does not have the CRC-32 it was written with; {_REMEDY}")
        return stored


def _read(path: Path) -> pa.RecordBatch:
    try:
        with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
            metadata, schema = reader.schema.metadata or {}, reader.schema.remove_metadata()
            known = schema in (SCHEMA, _SCHEMA_OF_0_1) and reader.num_record_batches == 1
            if metadata.get(b"siamdetr.proposals") != FORMAT.encode() or not known:
                raise DataError(f"{path}: not a file of proposals that this version reads; {_REMEDY}")
            batch: pa.RecordBatch = reader.get_batch(0)
            batch.validate()
            if any(column.null_count for column in batch.columns) or len(batch.column(6).values) % 4:
                raise pa.ArrowInvalid("rows lack values")
            bytes((reader.schema.metadata or {}).get(b"recipe", b"")).decode()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file of proposals; `siamdetr proposals DATA -o {path}` makes it") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        cause = " ".join(str(error).split())
        raise DataError(f"{path}: not a file of proposals, or broken off ({cause}); {_REMEDY}") from None
    return batch


def _fixed(column: pa.Array) -> NDArray[np.uint8]:
    """[n, 16] bytes in the column's own memory."""
    size = len(column) * KEY_BYTES
    flat = np.frombuffer(column.buffers()[1], dtype=np.uint8, count=size) if size else np.zeros(0, dtype=np.uint8)
    return flat.reshape(-1, KEY_BYTES)
