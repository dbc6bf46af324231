"""The number of processor cores that this process may use.

They are the machine's cores, limited by affinity and by the container.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_ROOT = Path("/")


def usable_cores(root: Path = _ROOT) -> int:
    """Cores that this process may use, at least 1.

    `os.cpu_count` counts the host's. A container with a limit of one core would start a thread for each of them, and
    all of these would share the one.

    Args:
        root: of the file system in which Linux describes the limits.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(root)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def cgroup_quota(root: Path = _ROOT) -> float | None:
    """Cores that the control groups of this process allow, perhaps a fraction.

    None: no limit, or no control groups.

    Every group above limits as well, so the least limit counts (Linux, Documentation/admin-guide/cgroup-v2.rst, "CPU
    interface files").
    """
    quotas = [quota for folder in _groups(root) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def limit_numeric_libraries(environment: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """Give OpenMP, before it is loaded, a limit that it does not see.

    It knows affinity, but no container's quota.
    """
    quota = cgroup_quota()
    if quota is not None and "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = str(usable_cores())


def _groups(root: Path) -> list[Path]:
    """The folders of this process's control groups and of those above them.

    For version 2, and for the `cpu` controller of version 1.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = mount / path.lstrip("/")
        folders += [group, *(parent for parent in group.parents if parent == mount or mount in parent.parents)]
    return folders


def _quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            allowed, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            allowed = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8")
        return None if allowed == "max" or float(allowed) <= 0 else float(allowed) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
