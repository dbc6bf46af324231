"""Cores that a process may use: fewer than the host has, where a container says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from siamdetr.system.threads import cgroup_quota, limit_numeric_libraries, usable_cores


def container(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A file system whose control groups say something."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1.0),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/cpu.max": "max 100000\n", "sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1.5),
        (
            "3:cpu,cpuacct:/job\n1:memory:/job\n",
            {
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            "3:cpu:/\n",
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "nonsense\n"}, None),
        ("", {}, None),
    ],
)
def test_the_least_limit_of_the_control_groups_counts(
    tmp_path: Path, groups: str, files: dict[str, str], quota: float | None
) -> None:
    root = container(tmp_path, groups, files)
    assert cgroup_quota(root) == quota
    cores = len(os.sched_getaffinity(0))
    assert usable_cores(root) == (cores if quota is None else min(cores, max(1, round(quota + 0.49))))


def test_affinity_counts_without_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usable_cores(tmp_path) == 1


def test_openmp_is_told_of_a_quota_unless_somebody_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siamdetr.system.threads.cgroup_quota", lambda root=Path("/"): 1.0)
    said, silent = {"OMP_NUM_THREADS": "7"}, {"HOME": "/"}
    limit_numeric_libraries(said)
    limit_numeric_libraries(silent)
    assert (said["OMP_NUM_THREADS"], silent["OMP_NUM_THREADS"]) == ("7", "1")
