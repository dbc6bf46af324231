"""What the heap does with freed memory during a training and after it."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc alone has these settings"
)

SCRIPT = """
import resource, torch
from siamdetr.system.heap import freed_memory_kept, return_large_blocks
from siamdetr.system.processes import memory_mib

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(16 * 2**20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.ones(1)
usual = faults()
with freed_memory_kept():
    {first}
    kept = min(faults() for _ in range(6))  # what lies between the blocks settles
    large = torch.ones(64 * 2**20)
    del large
    inside = memory_mib()
print(usual, kept, faults(), inside, memory_mib())
"""


def run(first: str = "pass") -> list[float]:
    """Page faults of four blocks of 64 MiB before, inside and after it; memory inside and after it, MiB."""
    command = [sys.executable, "-c", SCRIPT.replace("{first}", first)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return [float(figure) for figure in done.stdout.split()]


def test_memory_is_kept_inside_alone() -> None:
    """A block that was freed is used again without a page fault; at the end the memory is returned."""
    usual, kept, after, inside, end = run()
    assert kept < usual / 20
    assert after > usual / 4
    assert end < inside - 200


def test_loading_processes_return_it() -> None:
    """A process that only reads images goes back to the usual way."""
    _, kept, _, _, _ = run("return_large_blocks()")
    assert kept > 1000
