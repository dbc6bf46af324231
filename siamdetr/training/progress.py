"""The progress of a run.

The command line draws bars from it; the core draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol


class ProgressSink(Protocol):
    """Receives the progress of named tasks ("train", "evaluate", "proposals").

    Several may be open at once.
    """

    def begin(self, task: str, total: int, done: int = 0) -> None:
        """A task of `total` units starts, of which `done` are finished (in a resumed run)."""

    def update(self, task: str, done: int, values: Mapping[str, float] | None = None) -> None:
        """`done` units of the task are finished; `values` are figures to show beside it."""

    def end(self, task: str) -> None:
        """The task is over."""


class Silent:
    """A sink that shows nothing."""

    def begin(self, task: str, total: int, done: int = 0) -> None:
        """Nothing."""

    def update(self, task: str, done: int, values: Mapping[str, float] | None = None) -> None:
        """Nothing."""

    def end(self, task: str) -> None:
        """Nothing."""


def as_callback(sink: ProgressSink, task: str, poll: Callable[[], None]) -> Callable[[int, int], None]:
    """A `progress(done, total)` callback for the core's long functions, which also polls for signals."""
    begun = False

    def progress(done: int, total: int) -> None:
        nonlocal begun
        if not begun:
            sink.begin(task, total)
            begun = True
        sink.update(task, done)
        if done >= total:
            sink.end(task)
            begun = False  # one callback may serve several passes
        poll()

    return progress
