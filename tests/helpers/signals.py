"""Callbacks that send signals."""

from __future__ import annotations

import os
from collections.abc import Mapping

from siamdetr.training.progress import Silent


class SignalAt(Silent):
    """Sends this process a signal when a task reaches a count."""

    def __init__(self, signum: int, task: str, done: int) -> None:
        self.signum, self.task, self.done = signum, task, done

    def update(self, task: str, done: int, values: Mapping[str, float] | None = None) -> None:
        if (task, done) == (self.task, self.done):
            os.kill(os.getpid(), self.signum)
