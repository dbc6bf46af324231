"""A server's log: one line per event on standard error, with its time, whatever a message holds."""

from __future__ import annotations

import logging
import re
import sys
import time

_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # control characters, and Unicode's own line ends


class OneLine(logging.Formatter):
    """`2026-01-31T12:00:00Z LEVEL name: message`.

    Line breaks, also those of a traceback or a client, become `\\n`.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """The time in UTC, to the second."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))

    def format(self, record: logging.LogRecord) -> str:
        """The line of an event, without its end."""
        return _BREAKS.sub(lambda found: found[0].encode("unicode_escape").decode(), super().format(record))


def log_in_lines() -> None:
    """Log in this format in this process, for this package and uvicorn."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    for name, level in (("siamdetr", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
