"""The progress callback of the core's long functions."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]  # (done, total); the command line draws it
