"""The file of proposals survives kills, a second writer, and places where nothing can be written."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from helpers.data_sets import write_image

from siamdetr.data.index import DetectionIndex
from siamdetr.data.readers.recognise import open_dataset
from siamdetr.errors import DataError
from siamdetr.proposals import compute as proposals
from siamdetr.proposals import writing as proposal_writing
from siamdetr.proposals.compute import compute_proposals
from siamdetr.proposals.methods import Recipe
from siamdetr.proposals.shards import find_shard
from siamdetr.proposals.store import ProposalStore
from siamdetr.proposals.writing import write_part
from siamdetr.system.file_lock import only_writer
from siamdetr.system.parallel import TaskRunner

RANDOM = Recipe("random")  # what is tested is the writing


def images(root: Path, count: int) -> DetectionIndex:
    for i in range(count):
        write_image(root / f"{i:02}.jpg", seed=i)
    return open_dataset(root)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_a_killed_run_leaves_no_process_behind_and_goes_on_where_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = images(tmp_path / "images", 40)
    code = f"""
        import os, signal
        from siamdetr.data.readers.recognise import open_dataset
        from siamdetr.proposals.methods import Recipe
        from siamdetr.proposals.compute import compute_proposals
        from siamdetr.system.parallel import TaskRunner

        def kill(done, total):
            if done >= 16:
                os.kill(os.getpid(), signal.SIGKILL)

        if __name__ == "__main__":
            compute_proposals(
                open_dataset({str(tmp_path / "images")!r}), {str(tmp_path / "p.arrow")!r},
                recipe=Recipe("random"), engine=TaskRunner("processes", 1), part_size=8, progress=kill,
            )
    """
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(code))
    process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE)
    process.communicate(timeout=120)  # to the end of the output, which the workers have open as long as they live
    assert process.returncode == -9
    assert sum(".part-" in name for name in visible(tmp_path)) == 2
    program.unlink()
    with caplog.at_level(logging.INFO, logger="siamdetr"):
        store = compute_proposals(index, tmp_path / "p.arrow", recipe=RANDOM)
    assert "16 images known, 24 computed" in caplog.text
    assert len(store) == 40
    assert visible(tmp_path) == ["p.arrow"]


def test_parts_that_a_kill_left_beside_the_whole_store_are_not_counted_twice(tmp_path: Path) -> None:
    index = images(tmp_path / "images", 4)
    path = tmp_path / "p.arrow"
    store = compute_proposals(index, path, recipe=RANDOM)
    before, boxes = path.read_bytes(), store.num_boxes
    write_part(path, RANDOM.text, store.rows())
    store = compute_proposals(index, path, recipe=RANDOM)
    assert (len(store), store.num_boxes) == (4, boxes)
    assert path.read_bytes() == before
    assert visible(tmp_path) == ["p.arrow"]


def test_a_second_program_waits_and_adds_its_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = images(tmp_path / "a", 3), images(tmp_path / "b", 5)
    path, waited = tmp_path / "p.arrow", threading.Event()

    def add() -> None:
        compute_proposals(second, path, recipe=RANDOM, progress=lambda done, total: waited.set())

    with caplog.at_level(logging.INFO, logger="siamdetr"):
        with only_writer(path):
            other = threading.Thread(target=add)
            other.start()
            assert waited.wait(30)
            assert not path.exists()
            assert visible(tmp_path) == [".p.arrow.lock"]
        other.join()
    assert "p.arrow: another program is writing it; waiting" in caplog.text
    assert len(compute_proposals(first, path, recipe=RANDOM)) == 8
    assert visible(tmp_path) == ["p.arrow"]


def test_whoever_waits_may_give_up(tmp_path: Path) -> None:
    index = images(tmp_path / "images", 1)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with only_writer(tmp_path / "p.arrow"), pytest.raises(KeyboardInterrupt):
        compute_proposals(index, tmp_path / "p.arrow", recipe=RANDOM, progress=stop)


def test_where_nothing_can_be_written_is_said_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = images(tmp_path / "images", 1)
    (tmp_path / "file").touch()
    monkeypatch.setattr(proposals, "propose", None)
    with pytest.raises(DataError, match=r"file/p\.arrow: cannot be written there \(.*\); choose another place"):
        compute_proposals(index, tmp_path / "file" / "p.arrow")


def test_a_full_disk_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = images(tmp_path / "images", 4)
    path = tmp_path / "p.arrow"
    compute_proposals(index.subset([0, 1]), path, recipe=RANDOM)
    before = path.read_bytes()

    def full(file: object, schema: pa.Schema) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(proposal_writing.pa.ipc, "new_file", full)
    with pytest.raises(
        DataError, match=r"cannot be written \(No space left on device\); what was written before is kept"
    ):
        compute_proposals(index, path, recipe=RANDOM)
    assert path.read_bytes() == before
    assert visible(tmp_path) == ["p.arrow"]


def test_images_that_cannot_be_read_do_not_make_the_file_be_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images(tmp_path / "images", 3)
    (tmp_path / "images" / "09.jpg").write_bytes(b"broken")
    index, path = open_dataset(tmp_path / "images"), tmp_path / "p.arrow"
    compute_proposals(index, path, recipe=RANDOM)
    inode = path.stat().st_ino
    assert len(compute_proposals(index, path, recipe=RANDOM)) == 3
    assert path.stat().st_ino == inode
    assert "1 images could not be read and have no proposals" in caplog.text
    with pytest.raises(DataError, match=r"none of 1 images can be read; `siamdetr doctor .*` says why"):
        compute_proposals(index.subset([3]), tmp_path / "other.arrow", recipe=RANDOM)


def test_an_empty_shard_is_a_store_like_any_other(tmp_path: Path) -> None:
    index = images(tmp_path / "images", 2)
    paths = [tmp_path / f"{i}.arrow" for i in range(3)]
    for i, path in enumerate(paths):
        compute_proposals(find_shard(f"{i}/3").of(index), path, recipe=RANDOM, engine=TaskRunner("here"))
    assert len(ProposalStore.open(paths[2])) == 0
    assert len(ProposalStore.open(*paths)) == 2


def test_a_shard_s_variables_that_are_no_numbers_are_named() -> None:
    with pytest.raises(DataError, match=r"RANK=a, WORLD_SIZE=2: expected two numbers, .* give --shard i/n"):
        find_shard(None, {"RANK": "a", "WORLD_SIZE": "2"})
