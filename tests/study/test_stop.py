"""A stopped study: SIGTERM ends its cells, and leaves a report of finished cells and no process."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from helpers.processes import group, program, waited_for
from helpers.study_data import quiet, settings
from helpers.training_data import write_data

from siamdetr.study.cell import Cell
from siamdetr.study.run_cell import CellOutcome, CellTask, cell_folder, run_cell
from siamdetr.study.runner import open_grid, run_grid
from siamdetr.system.parallel import TaskRunner
from siamdetr.system.signals import SignalWatch
from siamdetr.training.checkpoints.checkpoint_file import read_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("study") / "data", train=10, val=3)


def in_background(data: Path, folder: Path, jobs: int) -> AbstractContextManager[subprocess.Popen[str]]:
    """A study of two endless pretrainings with SIGINT ignored, as `&` in a script starts it."""
    arguments = ["--fast", "--methods", "siamese,detreg", "--seeds", "0", "--fractions", "1", "--device", "cpu"]
    arguments += ["--pretrain-steps", "1000000", "--jobs", str(jobs), "--data", str(data), "-o", str(folder)]
    study = [sys.executable, "-m", "siamdetr.cli", "study", "data-efficiency", *arguments]
    return program("sh", "-c", 'trap "" INT; exec "$@"', "sh", *study)


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc")
@pytest.mark.parametrize(("jobs", "running"), [(1, ["siamese"]), (2, ["siamese", "detreg"])])
def test_sigterm_leaves_a_report_and_no_process(data: Path, tmp_path: Path, jobs: int, running: list[str]) -> None:
    checkpoints = [cell_folder(tmp_path, Cell("pretrain", method)) / "last.ckpt" for method in running]
    with in_background(data, tmp_path, jobs) as study:
        waited_for(lambda: all(path.exists() for path in checkpoints), study)  # written before the first step
        study.send_signal(signal.SIGINT)
        study.send_signal(signal.SIGTERM)
        out, errors = study.communicate()
        waited_for(lambda: not group(study.pid))  # the tracker of its locks ends a moment later
    assert study.returncode == 143, errors
    assert "Traceback" not in errors
    assert "Stopped; the same command goes on." in out
    for method, path in zip(running, checkpoints, strict=True):
        assert f"pretrain-{method}: stopped: SIGTERM: saved at step" in out
        assert read_checkpoint(path)["step"] >= 1
    report = tmp_path / "data-efficiency" / "report.html"
    assert f"Open {report}" in out
    assert "5 of 5 cells are not finished: the same command goes on with them." in report.read_text()
    assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == sorted(
        ["proposals", *(path.parent.name for path in checkpoints)]
    )


def test_a_signal_during_the_scoring_stops_a_cell(data: Path, tmp_path: Path) -> None:
    with SignalWatch() as watch:
        watch.stop(signal.SIGTERM)
        outcome = run_cell(CellTask(Cell("agnostic", "scratch"), settings(data), tmp_path, 10))
    assert outcome.interrupted
    assert outcome.error == "stopped by SIGTERM"
    assert not (cell_folder(tmp_path, outcome.cell) / "result.json").exists()


def test_an_error_after_a_signal_is_no_failure(data: Path, tmp_path: Path) -> None:
    with SignalWatch() as watch:
        watch.stop(signal.SIGTERM)
        outcome = run_cell(
            CellTask(Cell("qualitative", "siamese"), settings(data), tmp_path, 10)
        )  # nothing is pretrained
    assert outcome.interrupted
    assert not (cell_folder(tmp_path, outcome.cell) / "error.txt").exists()


def test_a_study_that_is_stopped_between_two_cells_begins_no_other(data: Path, tmp_path: Path) -> None:
    grid = open_grid(settings(data), tmp_path)
    outcomes: list[CellOutcome] = []
    with SignalWatch() as watch:
        watch.stop(signal.SIGTERM)
        stopped = run_grid(grid, engine=TaskRunner("here"), progress=quiet, told=outcomes.append)
    assert outcomes == []
    assert stopped.missing == list(grid.cells)
