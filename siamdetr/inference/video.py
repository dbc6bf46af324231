"""Video, read and written by PyAV.

Files, network streams and cameras, frame by frame with their own times.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from siamdetr.errors import VideoError

_log = logging.getLogger(__name__)

_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
_TIME_BASE = Fraction(1, 90_000)  # seconds; what MPEG counts in


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        number: from 0, before frames are left out.
        seconds: its time in the video; frames of a variable rate keep their times.
        pixels: [H, W, 3] uint8 RGB.
    """

    number: int
    seconds: float
    pixels: NDArray[np.uint8]


class VideoReader:
    """The frames of a video; opened on entering, closed on leaving.

    Args:
        source: a file, an address (rtsp://, http://, …), or the number of a camera.
        stride: every `stride`-th frame is returned.
    Attributes: `num_frames` (0 = not known), `broken`: why the video ended early, else None.
    Raises:
        VideoError: not there, or not a video.
        ValueError: the stride is below 1.
    """

    def __init__(self, source: str, *, stride: int = 1) -> None:
        if stride < 1:
            raise ValueError(f"--stride: got {stride}, expected 1 or more")
        self.source, self.stride = source, stride
        self.broken: str | None = None
        self._container = _open(source)
        streams = self._container.streams.video
        if not streams:
            self._container.close()
            raise VideoError(f"{source}: no picture in it (only sound?); give a video file")
        self._stream = streams[0]
        self.num_frames = int(self._stream.frames)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    @property
    def rate(self) -> float:
        """Average frames per second; 25 if the file does not say."""
        return float(self._stream.average_rate or 25)

    def __iter__(self) -> Iterator[Frame]:
        """Frames in order. A truncated video ends early; `broken` says why."""
        number = 0
        try:
            for frame in self._container.decode(self._stream):
                if number % self.stride == 0:
                    seconds = frame.time if frame.time is not None else number / self.rate
                    yield Frame(number, float(seconds), frame.to_ndarray(format="rgb24"))
                number += 1
        except av.FFmpegError as error:
            self.broken = f"{self.source}: breaks off after {number} frames ({error.strerror})"
            _log.warning("%s; the frames before are kept", self.broken)


class VideoWriter:
    """An MP4 file of frames of one size, each shown at its own time.

    It is complete only after `close`.

    Args:
        path: of the file.
        rate: nominal frames per second.
    """

    def __init__(self, path: Path, *, rate: float) -> None:
        self.path = path
        self._container = av.open(str(path), "w", format="mp4")
        stream: Any = self._container.add_stream(_encoder(), rate=Fraction(rate).limit_denominator(1001))
        self._stream = stream
        stream.pix_fmt = "yuv420p"
        self._last = -1

    def write(self, pixels: NDArray[np.uint8], seconds: float) -> None:
        """Append a frame [H, W, 3] uint8; an odd row or column is cut, because the format needs even sizes."""
        height, width = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
        if self._last < 0:
            self._stream.width, self._stream.height = width, height
            self._stream.codec_context.time_base = _TIME_BASE
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
        self._last = max(self._last + 1, round(seconds / _TIME_BASE))
        frame.pts, frame.time_base = self._last, _TIME_BASE
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write buffered frames, and finish the file."""
        if self._last >= 0:
            self._container.mux(self._stream.encode())
        self._container.close()


def _open(source: str) -> Any:
    options: dict[str, str] = {}
    format_name = None
    name = source
    if source.isdigit():
        format_name, pattern = _CAMERAS.get(sys.platform, ("v4l2", "/dev/video{}"))
        name = pattern.format(source)
    elif source.lower().startswith("rtsp://"):
        options = {"rtsp_transport": "tcp"}
    try:
        return av.open(name, format=format_name, options=options, timeout=(10.0, 30.0))
    except (av.FFmpegError, OSError, ValueError) as error:
        kind = f"camera {source}" if source.isdigit() else source
        remedy = "is it plugged in, and free?" if source.isdigit() else "is it there, and a video?"
        text = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{kind}: cannot be opened ({text}); {remedy}") from None


def _encoder() -> str:
    """The encoder: H.264 if this build of FFmpeg has it, else MPEG-4."""
    for name in ("libx264", "libopenh264"):
        if name in av.codecs_available:
            return name
    return "mpeg4"
