"""One console for everything a person reads, and progress bars with throughput and time left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(highlight=False)


def log_to_console() -> None:
    """Let the package's `logging` speak through the console: messages only, warnings in colour."""
    handler = RichHandler(console=console, show_time=False, show_path=False, markup=False, rich_tracebacks=False)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("siamdetr")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


class _Throughput(ProgressColumn):
    """Units a second over the recent past."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g}/s", style="progress.data.speed")


def bars() -> Progress:
    """A rich progress display: what, bar, done/total, throughput, time left, and `note`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        _Throughput(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", style="dim"),
        console=console,
        speed_estimate_period=20,
    )


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar as the `progress(done, total)` callback that the core's long functions take."""
    with bars() as display:
        task = display.add_task(what, total=None, note="")
        yield lambda done, total: display.update(task, completed=done, total=total)
