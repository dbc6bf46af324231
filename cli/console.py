"""The console for all messages, and progress bars with throughput and remaining time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from siamdetr.system.plain_text import visible


class SafeConsole(Console):
    """A console that shows names from files and never obeys them.

    Control characters are written as escapes.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's method, with control characters made visible."""
        return super().render_str(visible(text), **options)


console = SafeConsole(highlight=False)


def log_to_console() -> None:
    """Send the package's log to the console: messages only, warnings in colour."""
    handler = RichHandler(console=console, show_time=False, show_path=False, markup=False, rich_tracebacks=False)
    handler.setFormatter(_VisibleFormatter("%(message)s"))
    logger = logging.getLogger("siamdetr")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def bold(name: object) -> str:
    """Console markup of a name in bold; brackets in the name are escaped."""
    return f"[bold]{escape(str(name))}[/]"


class _VisibleFormatter(logging.Formatter):
    """Log messages on which control characters are written as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


class _Throughput(ProgressColumn):
    """Units per second, averaged over the last seconds."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g}/s", style="progress.data.speed")


def bars() -> Progress:
    """A rich progress display: name, bar, done/total, throughput, remaining time, and `note`."""
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
        yield bar(display, what)


def bar(display: Progress, what: str) -> Callable[[int, int], None]:
    """One more bar of a display, as a `progress(done, total)` callback."""
    task = display.add_task(what, total=None, note="")
    return lambda done, total: display.update(task, completed=done, total=total)


class RunProgress:
    """Draw the progress of a run, one bar per current task: a `ProgressSink` of `siamdetr.training`."""

    def __init__(self) -> None:
        self._bars = bars()
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> RunProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, task: str, total: int, done: int = 0) -> None:
        """Open a bar."""
        self._tasks[task] = self._bars.add_task(task, total=total, completed=done, note="")

    def update(self, task: str, done: int, values: Mapping[str, float] | None = None) -> None:
        """Move a bar, and show figures beside it."""
        identity = self._tasks[task]
        if values:
            note = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            self._bars.update(identity, completed=done, note=note)
        else:
            self._bars.update(identity, completed=done)

    def end(self, task: str) -> None:
        """Close a bar; the bar of training stays visible, others disappear."""
        identity = self._tasks.pop(task)
        if task == "train":
            self._bars.stop_task(identity)
        else:
            self._bars.remove_task(identity)
