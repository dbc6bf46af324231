"""Write a video with its detections: frames with boxes, and one line of JSON per frame."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import supervision as sv

from siamdetr.drawing.boxes import draw
from siamdetr.inference.detection_rows import detection_rows
from siamdetr.inference.predictor import Progress
from siamdetr.inference.video import Frame, VideoReader, VideoWriter
from siamdetr.system.atomic_file import move_into_place

Detect = Callable[[Sequence[Frame]], list[sv.Detections]]


@dataclass(frozen=True)
class AnnotatedVideo:
    """The files and figures of an annotated video.

    Attributes:
        video: the MP4 file.
        lines: the JSON lines: {"frame", "seconds", "detections": [...]} each.
        num_frames: frames written.
        num_boxes: detections in them.
        broken: why the video ended early; None: it did not.
    """

    video: Path
    lines: Path
    num_frames: int
    num_boxes: int
    broken: str | None


def annotate_video(
    reader: VideoReader, detect: Detect, stem: Path, *, batch_size: int = 8, progress: Progress | None = None
) -> AnnotatedVideo:
    """Detect objects in the frames of a video; write STEM.mp4 and STEM.jsonl.

    Both files take their names when they are finished, also when the video breaks off or a person stops it: the frames
    before are kept.

    Args:
        reader: the video.
        detect: frames -> their detections.
        stem: path of the output without its suffix.
        batch_size: frames at a time.
        progress: called with (frames done, frames in all; 0 = not known).
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    video, lines = stem.with_name(f"{stem.name}.mp4"), stem.with_name(f"{stem.name}.jsonl")
    parts = video.with_name(f".{video.name}.part"), lines.with_name(f".{lines.name}.part")
    writer = VideoWriter(parts[0], rate=max(1.0, reader.rate / reader.stride))
    frames, boxes = 0, 0
    try:
        with parts[1].open("w", encoding="utf-8") as out:
            for batch in _batches(reader, batch_size):
                for frame, found in zip(batch, detect(batch), strict=True):
                    writer.write(np.asarray(draw(frame.pixels, found, least_side=0)), frame.seconds)
                    row = {"frame": frame.number, "seconds": round(frame.seconds, 4)}
                    out.write(json.dumps(row | {"detections": detection_rows(found)}) + "\n")
                    frames, boxes = frames + 1, boxes + len(found)
                if progress is not None:
                    progress(frames, -(-reader.num_frames // reader.stride))
    finally:
        writer.close()
        for part, target in zip(parts, (video, lines), strict=True):
            if frames:
                move_into_place(part, target)
            else:
                with suppress(FileNotFoundError):
                    part.unlink()
    return AnnotatedVideo(video, lines, frames, boxes, reader.broken)


def _batches(reader: VideoReader, size: int) -> Iterator[list[Frame]]:
    batch: list[Frame] = []
    for frame in reader:
        batch.append(frame)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
