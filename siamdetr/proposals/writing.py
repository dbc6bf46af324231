"""Write the proposals file that `store.py` reads: parts during the computation, then the whole.

Every file is written atomically: a temporary file in the same folder is flushed to disk and renamed. A finished part is
`NAME.part-*` beside the file, so that an interrupted run continues from it.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from siamdetr.errors import CheckpointError, DataError
from siamdetr.images.open import KEY_BYTES
from siamdetr.proposals.rows import Rows
from siamdetr.proposals.store import FORMAT, SCHEMA, ProposalStore
from siamdetr.system.atomic_file import atomic_write


def file_stamp(path: Path) -> bytes:
    """16 bytes that name a file's path, size and time of change; zeros if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return bytes(KEY_BYTES)
    text = f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:KEY_BYTES]


def read_known(path: Path, recipe: str) -> list[ProposalStore]:
    """Read and verify the rows on disk for this recipe, from store and parts of an interrupted run.

    Raises:
        DataError: `path` is there and is not a file of proposals, or is damaged.
    """
    known = [ProposalStore.open(path).verify()] if path.exists() else []
    for part in _parts(path):
        try:
            known.append(ProposalStore.open(part).verify())
        except DataError:
            part.unlink(missing_ok=True)  # truncated, damaged, or from another version: computed again
    return [store for store in known if store.recipe == recipe]


def write_part(path: Path, recipe: str, rows: Rows) -> Path:
    """Save rows beside the store, until `write_store` merges them."""
    part = path.with_name(f"{path.name}.part-{uuid.uuid4().hex}")
    _write(part, recipe, rows)
    return part


def write_store(path: Path, recipe: str, rows: Rows) -> None:
    """Write the whole store, and remove its parts and the temporary files of killed runs."""
    _write(path, recipe, rows)
    for left in (*_parts(path), *path.parent.glob(f".{path.name}.*.tmp")):
        left.unlink(missing_ok=True)


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.part-*")) if path.parent.exists() else []


def _write(path: Path, recipe: str, rows: Rows) -> None:
    """Write a file; raises DataError if the disk is full or writing is not allowed."""
    rows = rows.sorted()
    columns = [
        _fixed_column(rows.keys),
        _fixed_column(rows.stamps),
        pa.array(np.ascontiguousarray(rows.sizes[:, 0])),
        pa.array(np.ascontiguousarray(rows.sizes[:, 1])),
        pa.array(rows.fallbacks),
        pa.array(rows.fanout()),
        pa.LargeListArray.from_arrays(pa.array(rows.offsets * 4), pa.array(rows.values.reshape(-1))),
        pa.array(rows.checksums()),
    ]
    schema = SCHEMA.with_metadata({"siamdetr.proposals": FORMAT, "recipe": recipe})

    def write(file: IO[bytes]) -> None:
        with pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(pa.record_batch(columns, schema=schema))

    try:
        atomic_write(path, write)
    except (OSError, CheckpointError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        raise DataError(
            f"{path}: cannot be written ({getattr(cause, 'strerror', cause)}); what was written before is kept. Make room there, "
            "or choose another place"
        ) from error


def _fixed_column(values: NDArray[np.uint8]) -> pa.Array:
    buffer = pa.py_buffer(np.ascontiguousarray(values).tobytes())
    return pa.Array.from_buffers(pa.binary(KEY_BYTES), len(values), [None, buffer])
