"""Ctrl-C and SIGTERM: finish the current step, save, exit with 130 or 143.

A second signal exits at once.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_log = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """A run stopped by a signal. As a SystemExit it carries the exit code: 130 (Ctrl-C) or 143 (SIGTERM)."""

    def __init__(self, signum: int, text: str) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.text = text

    def __str__(self) -> str:
        return self.text


class SignalWatch:
    """While entered, SIGINT and SIGTERM only set a flag that long work polls.

    Nested watches share one flag, so that a signal between two pieces of work is not lost. A signal that was ignored
    before stays ignored, as SIGINT is for background jobs of a shell without job control. Outside the main thread,
    where Python allows no handlers, a watch shares the flag of the main thread's watch, if there is one.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._signalled = False
        self._outer: SignalWatch | None = None
        self._before: dict[int, Any] = {}

    @property
    def received(self) -> int | None:
        """The first signal received; None: none."""
        return self._received if self._outer is None else self._outer.received

    def __enter__(self) -> SignalWatch:
        handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
        owners = (getattr(handler, "__self__", None) for handler in handlers.values())
        self._outer = next((owner for owner in owners if isinstance(owner, SignalWatch)), None)
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: handler for signum, handler in handlers.items() if handler != signal.SIG_IGN}
            self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def install(self) -> None:
        """Install the handlers; called again after Lightning has installed its own."""
        for signum in self._before:
            signal.signal(signum, self._handle)

    def stop(self, signum: int) -> None:
        """Set the flag as a first signal would, unless it is set."""
        if self._outer is not None:
            self._outer.stop(signum)
        elif self._received is None:
            self._received = signum

    def raise_if_received(self) -> None:
        """Raise if a signal was received: to stop where there is nothing to save.

        Raises:
            Interrupted: a signal has come.
        """
        if self.received is not None:
            raise Interrupted(self.received, f"stopped by {signal.Signals(self.received).name}")

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._outer is not None:
            self._outer._handle(signum, frame)
            return
        if self._signalled:  # by a signal: after `stop`, the one that came to all processes may still be on its way
            os._exit(128 + signum)
        self._signalled = True
        self.stop(signum)
        _log.warning("%s: finishing the step and saving; once more to leave at once", signal.Signals(signum).name)


def leave_signals_to_parent() -> None:
    """Ignore SIGINT, and SIGTERM unless the parent sends it; for processes that read images.

    A terminal, systemd and job schedulers send their signal to every process of a training. The parent finishes its
    step with what these processes bring, saves, and ends them. Where the sender of a signal cannot be told (macOS,
    Windows), SIGTERM is not ignored.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_when_told(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(128 + signal.SIGTERM)
