"""Callbacks that stop a training as signals do."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

from siamdetr.system.signals import SignalWatch
from siamdetr.training.progress import Silent


class SignalAt(Silent):
    """A signal to this process when a task reaches a count.

    SIGKILL is sent. For the others Python's handler is called, as it would be: a signal that reached no handler would
    end the process with all of its tests. Processes of their own get real ones.
    """

    def __init__(self, signum: int, task: str, done: int) -> None:
        self.signum, self.task, self.done = signum, task, done

    def update(self, task: str, done: int, values: Mapping[str, float] | None = None) -> None:
        if (task, done) != (self.task, self.done):
            return
        if self.signum == signal.SIGKILL:
            os.kill(os.getpid(), self.signum)
        handler = signal.getsignal(self.signum)
        watch = getattr(handler, "__self__", None)
        assert isinstance(watch, SignalWatch), f"signal {self.signum} goes to {handler}"
        assert watch.received is None, f"signal {watch.received} came before, and a second one ends the process"
        assert callable(handler)
        handler(self.signum, None)
