"""Sources of video: a file, the address of a stream, or the number of a camera. Imports no PyAV."""

from __future__ import annotations

import re
from pathlib import Path

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp"}
)
_ADDRESS = re.compile(r"(rtsps?|rtmp|https?|udp|srt)://", re.IGNORECASE)


def source_of(argument: str | Path) -> str:
    """The source that a command-line argument means; restores the slash that a path takes from an address."""
    return re.sub(r"^([A-Za-z]{3,5}):/(?!/)", r"\1://", str(argument))


def is_video(source: str) -> bool:
    """Whether `source` is a video file by its suffix, the address of a stream, or a camera's number."""
    return source.isdigit() or bool(_ADDRESS.match(source)) or Path(source).suffix.lower() in VIDEO_SUFFIXES
