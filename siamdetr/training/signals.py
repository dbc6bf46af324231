"""Ctrl-C and SIGTERM: finish the step, write the checkpoint, leave with 130 or 143. A second signal leaves at once."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import distributed

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """A run that was asked to stop and has stopped. As a SystemExit it carries the exit code: 130 (Ctrl-C) or 143 (SIGTERM)."""

    def __init__(self, signum: int, text: str) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.text = text

    def __str__(self) -> str:
        return self.text


class SignalWatch:
    """While entered, SIGINT and SIGTERM only set a flag, which training polls between steps and evaluation between images.

    Outside the main thread, where Python allows no handlers, it watches nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalWatch:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
            self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def install(self) -> None:
        """Take the handlers; called again after Lightning has put its own."""
        if self._before:
            for signum in _SIGNALS:
                signal.signal(signum, self._handle)

    def agreed(self, device: torch.device) -> int | None:
        """The signal that any of the processes received; None: none did. All processes must ask together."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return self.received
        flag = torch.tensor([self.received or 0], device=device)
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        return int(flag.item()) or None

    def raise_if_received(self) -> None:
        """Stop here and now, with nothing to save.

        Raises:
            Interrupted: a signal has come.
        """
        if self.received is not None:
            raise Interrupted(self.received, f"stopped by {signal.Signals(self.received).name}")

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + signum)
        self.received = signum
        _log.warning("%s: finishing the step and saving; once more to leave at once", signal.Signals(signum).name)
