"""Processes wait for the first as long as it works, and notice at once when it has died."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import distributed

from siamdetr.system.distributed import PatientGroup, first_process_first

PATIENCE = datetime.timedelta(seconds=1)  # of PyTorch's own groups, here; by default 10 or 30 minutes
WORK = 3.0  # seconds


def process(rank: int, meeting: Path, task: Callable[[int, Path], None]) -> None:
    """A process of two, whose collective operations give up after `PATIENCE`."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    store = f"file://{meeting / 'meet'}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=PATIENCE)
    try:
        task(rank, meeting)
    except RuntimeError as error:
        (meeting / f"error-{rank}").write_text(str(error))


def both(task: Callable[[int, Path], None], meeting: Path) -> list[int | None]:
    """Exit codes of two processes that do a task together."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=process, args=(rank, meeting, task)) for rank in range(2)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(60)
    return [one.exitcode for one in processes]


def goes_in_first(rank: int, meeting: Path) -> None:
    with first_process_first():
        if rank == 0:
            time.sleep(WORK)
            (meeting / "proposals").touch()
        found = (meeting / "proposals").exists()
    (meeting / f"saw-{rank}").write_text(str(found))


def tells_its_score(rank: int, meeting: Path) -> None:
    group = PatientGroup()
    if rank == 0:
        time.sleep(WORK)
    (meeting / f"saw-{rank}").write_text(str(group.from_first(0.25 if rank == 0 else None)))


def cannot_wait(rank: int, meeting: Path) -> None:
    if rank == 0:
        time.sleep(WORK)
    distributed.barrier()


def dies(rank: int, meeting: Path) -> None:
    group = PatientGroup()
    if rank == 0:
        os._exit(7)
    group.wait()


@pytest.mark.parametrize(("task", "seen"), [(goes_in_first, "True"), (tells_its_score, "0.25")])
def test_the_others_wait_longer_than_pytorch_would(
    task: Callable[[int, Path], None], seen: str, tmp_path: Path
) -> None:
    assert both(task, tmp_path) == [0, 0]
    assert [(tmp_path / f"saw-{rank}").read_text() for rank in range(2)] == [seen, seen]
    assert not list(tmp_path.glob("error-*"))


def test_pytorch_alone_gives_up(tmp_path: Path) -> None:
    both(cannot_wait, tmp_path)
    assert "imed out" in (tmp_path / "error-1").read_text()


def test_a_first_process_that_dies_is_noticed_at_once(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert both(dies, tmp_path) == [7, 0]
    assert time.monotonic() - begun < 20
    assert (tmp_path / "error-1").exists()


def test_who_waits_may_give_up(tmp_path: Path) -> None:
    def gives_up(rank: int, meeting: Path) -> None:
        def poll() -> None:
            raise RuntimeError("stopped by a signal")

        with first_process_first(poll):
            time.sleep(WORK if rank == 0 else 0)

    both(gives_up, tmp_path)
    assert (tmp_path / "error-1").read_text() == "stopped by a signal"
