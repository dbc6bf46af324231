"""Tasks for other processes, which import this file and no PyTorch.

Run as a program, it is a task runner with two of them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from siamdetr.system.parallel import TaskRunner
from siamdetr.system.signals import SignalWatch


def process_id(task: object) -> int:
    """The id of the process that does the task."""
    return os.getpid()


def killed(task: object) -> None:
    """Die as for lack of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def until_stopped(marker: Path) -> tuple[str, int]:
    """Leaves its process id in a file, and works until it is asked to stop."""
    with SignalWatch() as watch:
        written = marker.with_suffix(".tmp")
        written.write_text(str(os.getpid()))
        written.rename(marker)
        while watch.received is None:
            time.sleep(0.01)
        return marker.name, int(watch.received)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with SignalWatch() as watch:
        (folder / "watching").touch()
        tasks = [folder / f"begun-{i}" for i in range(6)]
        results = list(TaskRunner("processes", 2).run(until_stopped, tasks, stopped=lambda: watch.received is not None))
        sys.stdout.write(f"{watch.received:d} {sorted(results)}")
