"""Facts about processes and their memory, on every operating system (psutil)."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import psutil

# POSIX alone has it.
resource: Any = importlib.import_module("resource") if importlib.util.find_spec("resource") is not None else None


def lives(process: int) -> bool:
    """Whether a process of this number runs; no signal is sent, which on Windows would end it."""
    return bool(psutil.pid_exists(process))


def memory_mib() -> float:
    """Memory that this process holds, MiB."""
    return float(psutil.Process().memory_info().rss) / 2**20


def peak_mib() -> float:
    """The peak memory of this process, MiB.

    On Linux ru_maxrss would include the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    if resource is None:  # Windows
        memory: Any = psutil.Process().memory_info()
        return float(getattr(memory, "peak_wset", memory.rss)) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, else KiB
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / unit
