"""A damaged file of proposals is noticed: no flipped byte becomes another box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers.data_sets import write_image

from siamdetr.data.readers.recognise import open_dataset
from siamdetr.errors import DataError
from siamdetr.proposals.compute import compute_proposals, open_proposals
from siamdetr.proposals.methods import Recipe
from siamdetr.proposals.rows import Rows, StoredImage
from siamdetr.proposals.store import ProposalStore
from siamdetr.proposals.writing import write_store


@pytest.fixture
def three_rows(tmp_path: Path) -> tuple[Path, list[bytes]]:
    """A small store, and its keys."""
    rng = np.random.default_rng(3)
    keys = [rng.bytes(16) for _ in range(3)]
    rows = [StoredImage.of(key, key, (10, 20), rng.random((n, 4), dtype=np.float32)) for n, key in enumerate(keys)]
    write_store(tmp_path / "p.arrow", "recipe", Rows.of(rows))
    return tmp_path / "p.arrow", keys


def test_no_flipped_byte_changes_a_box(three_rows: tuple[Path, list[bytes]]) -> None:
    path, keys = three_rows
    whole, right = path.read_bytes(), [ProposalStore.open(path).boxes(key) for key in keys]
    noticed: list[str] = []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            found = [ProposalStore.open(path).verify().boxes(key) for key in keys]
        except DataError as error:
            noticed.append(str(error))
            continue
        for before, now in zip(right, found, strict=True):
            np.testing.assert_array_equal(now, before)  # type: ignore[arg-type]
    assert all("p.arrow: " in text and text.endswith("delete it, and it is computed again") for text in noticed)
    assert len(noticed) > 200  # the rest is padding, names of fields, and what Arrow does not read


def test_a_damaged_row_is_noticed_when_it_is_looked_up(three_rows: tuple[Path, list[bytes]]) -> None:
    path, keys = three_rows
    box = ProposalStore.open(path).find(keys[1])
    assert box is not None
    data = path.read_bytes()
    path.write_bytes(data.replace(box.boxes.tobytes(), bytes(8)))
    store = ProposalStore.open(path)
    assert store.boxes(keys[2]) is not None
    with pytest.raises(
        DataError, match=r"p.arrow: damaged: a row does not have the CRC-32 it was written with; delete it"
    ):
        store.boxes(keys[1])
    with pytest.raises(
        DataError, match=r"damaged: 1 of 3 rows do not have the CRC-32 they were written with; delete it"
    ):
        store.verify()


def test_a_damaged_store_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "1.jpg", seed=1)
    index, path = open_dataset(tmp_path / "images"), tmp_path / "p.arrow"
    store = compute_proposals(index, path, recipe=Recipe("random"))
    data = path.read_bytes()
    boxes = store.rows().values.tobytes()
    path.write_bytes(data.replace(boxes, bytes(len(boxes))))
    for use in (lambda: compute_proposals(index, path, recipe=Recipe("random")), lambda: open_proposals(index, [path])):
        with pytest.raises(DataError, match="rows do not have the CRC-32 they were written with"):
            use()


def test_a_file_without_checksums_is_read_as_before(three_rows: tuple[Path, list[bytes]]) -> None:
    path, keys = three_rows
    right = ProposalStore.open(path).boxes(keys[2])
    with pa.ipc.open_file(str(path)) as reader:
        batch = reader.get_batch(0)
    old = batch.select(batch.schema.names[:7])
    path.unlink()
    with pa.ipc.new_file(str(path), old.schema) as writer:
        writer.write_batch(old)
    found = ProposalStore.open(path).verify().boxes(keys[2])
    assert right is not None
    assert found is not None
    np.testing.assert_array_equal(found, right)
