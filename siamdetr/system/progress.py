"""The callback of long functions of the core."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]  # (done, total); the command line draws it
