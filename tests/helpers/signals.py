"""Callbacks that send signals."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

from siamdetr.system.signals import SignalWatch
from siamdetr.training.progress import Silent


class SignalAt(Silent):
    """Sends this process a signal when a task reaches a count.

    A signal that nobody waits for would end the process with all of its tests, so that is an AssertionError.
    """

    def __init__(self, signum: int, task: str, done: int) -> None:
        self.signum, self.task, self.done = signum, task, done

    def update(self, task: str, done: int, values: Mapping[str, float] | None = None) -> None:
        if (task, done) == (self.task, self.done):
            if self.signum != signal.SIGKILL:
                assert_awaited(self.signum)
            os.kill(os.getpid(), self.signum)


def assert_awaited(signum: int) -> None:
    """A watch is installed for the signal, and has received none: a second one would end the process."""
    handler = signal.getsignal(signum)
    watch = getattr(handler, "__self__", None)
    assert isinstance(watch, SignalWatch), f"signal {signum} goes to {handler}"
    assert watch.received is None, f"signal {watch.received} came before"
