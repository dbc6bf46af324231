"""Limits that loading processes meet are named before the first step, with the way out."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.kills import in_own_processes
from helpers.training_data import finetune_settings, write_data

from siamdetr.errors import LoadingError
from siamdetr.system import shared_memory
from siamdetr.system.shared_memory import check_shared_memory, explained
from siamdetr.training.finetune import finetune

MEBIBYTE = 2**20


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """A system with so many bytes of shared memory."""
    real = shutil.disk_usage

    def disk_usage(path: Any) -> Any:
        return SimpleNamespace(free=free) if str(path) == "/dev/shm" else real(path)

    monkeypatch.setattr(shared_memory.shutil, "disk_usage", disk_usage)


def test_room_for_all_batches_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 64 * MEBIBYTE)
    check_shared_memory(16 * MEBIBYTE, 4)
    with pytest.raises(
        LoadingError,
        match=r"/dev/shm: 64 MiB of shared memory are free, but 5 batches of 16\.0 MiB pass through it; start the container with "
        r"--shm-size=2g \(or --ipc=host\), take a smaller batch, or load in this process with --workers 0",
    ):
        check_shared_memory(16 * MEBIBYTE, 5)


def test_a_system_without_such_a_place_has_no_such_limit(tmp_path: Path) -> None:
    check_shared_memory(2**60, 4, tmp_path / "none")


def test_a_run_with_loading_processes_is_refused_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(tmp_path / "data", train=4, val=1)
    with_free(monkeypatch, 1000)
    with pytest.raises(LoadingError, match=r"/dev/shm: .*--shm-size=2g .*--workers 0"):
        finetune(finetune_settings(data, tmp_path / "run", workers=2))
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert rows == ["step"]
    assert finetune(finetune_settings(data, tmp_path / "other", workers=0, steps=1)).steps == 1


def test_a_run_with_few_open_files_names_the_limit_before_its_first_step(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=4, val=1)

    def run() -> None:
        limit = len(os.listdir("/proc/self/fd")) + 24
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        try:
            steps = finetune(finetune_settings(data, tmp_path / "run", workers=2, steps=2)).steps
        except LoadingError as error:
            (tmp_path / "seen").write_text(str(error))
        else:
            (tmp_path / "seen").write_text(f"{steps} steps")

    in_own_processes([run])
    seen = (tmp_path / "seen").read_text()
    assert "(ulimit -n); raise it" in seen
    assert "--workers 0" in seen


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        ("[Errno 24] Too many open files", r"the limit of \d+ open files is reached \(ulimit -n\); raise it"),
        ("received 0 items of ancdata", r"\(ulimit -n\)"),
        (
            "DataLoader worker (pid 7) is killed by signal: Bus error.",
            r"/dev/shm, the shared memory, is full; .*--shm-size=2g",
        ),
        (
            "unable to write to file </torch_12_34>: No space left on device (28)",
            r"/dev/shm, the shared memory, is full",
        ),
        ("DataLoader timed out after 60 seconds", r"no batch came for 60 s: .*worker_timeout"),
        ("DataLoader worker (pid 7) is killed by signal: Killed.", r"a process was killed .*fewer --workers"),
    ],
)
def test_errors_of_loading_processes_are_explained(message: str, meaning: str) -> None:
    with pytest.raises(LoadingError, match=meaning):
        raise explained(RuntimeError(message), 60) or AssertionError(message)


def test_other_errors_stay_as_they_are() -> None:
    assert explained(RuntimeError("shapes do not match"), 60) is None
