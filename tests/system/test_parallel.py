"""Task runners: tasks in other processes are stopped, and no process stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from helpers import parallel_work
from helpers.parallel_work import killed, process_id, until_stopped
from helpers.processes import group, program, waited_for

from siamdetr.errors import EngineError
from siamdetr.system.parallel import TaskRunner


def two_at_work(folder: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    """An engine with two processes that work until they are stopped."""
    return program(sys.executable, parallel_work.__file__, folder)


def test_each_task_has_a_fresh_process_where_that_is_asked() -> None:
    found = list(TaskRunner("processes", 1, fresh=True).run(process_id, range(3)))
    assert len({*found, os.getpid()}) == 4


def test_processes_that_are_stopped_end_their_tasks_and_take_no_other(tmp_path: Path) -> None:
    tasks = [tmp_path / f"begun-{i}" for i in range(8)]
    found = list(
        TaskRunner("processes", 2).run(until_stopped, tasks, stopped=lambda: len(list(tmp_path.glob("begun-?"))) == 2)
    )
    assert sorted(found) == [("begun-0", signal.SIGTERM), ("begun-1", signal.SIGTERM)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun-0", "begun-1"]


@pytest.mark.parametrize("kind", ["here", "threads"])
def test_no_task_begins_after_the_stop(kind: str) -> None:
    done: list[int] = []
    engine = TaskRunner("here") if kind == "here" else TaskRunner("threads", 1)
    assert list(engine.run(done.append, range(5), stopped=lambda: len(done) >= 2)) == [None] * len(done)
    assert done == [0, 1] if kind == "here" else len(done) < 5


def test_a_process_that_is_killed_is_said() -> None:
    with pytest.raises(EngineError, match="a process was killed, perhaps because memory ran out; fewer at a time"):
        list(TaskRunner("processes", 1).run(killed, range(2)))


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc")
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    with two_at_work(tmp_path) as engine:
        waited_for(lambda: len(list(tmp_path.glob("begun-?"))) == 2, engine)
        assert {int(path.read_text()) for path in tmp_path.glob("begun-?")} < set(group(engine.pid))
        engine.kill()
        engine.wait()
        waited_for(lambda: not group(engine.pid))


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["starting", "working"])
def test_a_signal_to_all_processes_at_once_stops_them_as_one_to_the_first(
    tmp_path: Path, signum: int, when: str
) -> None:
    with two_at_work(tmp_path) as engine:
        waited_for((tmp_path / "watching").exists, engine)
        if when == "starting":
            waited_for(lambda: len(group(engine.pid)) > 2, engine)  # the engine, the tracker of its locks, a worker
        else:
            waited_for(lambda: len(list(tmp_path.glob("begun-?"))) == 2, engine)
        os.killpg(engine.pid, signum)
        out, errors = engine.communicate()
        waited_for(lambda: not group(engine.pid))  # the tracker of its locks ends a moment later
    assert engine.returncode == 0, errors
    assert "Traceback" not in errors
    begun = [f"begun-{i}" for i in range(2) if (tmp_path / f"begun-{i}").exists()]
    assert out == f"{int(signum)} {[(name, int(signal.SIGTERM)) for name in begun]}"
    assert len(begun) == 2 or when == "starting"
