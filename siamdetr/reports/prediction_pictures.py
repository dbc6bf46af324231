"""Pictures of detections, drawn and written by threads while the model works on the next images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path

from siamdetr.drawing import boxes
from siamdetr.inference.predict_files import Failed, Found, pipeline_threads
from siamdetr.system.atomic_file import atomic_bytes
from siamdetr.system.ordered_map import ordered_map


def write_pictures(
    results: Iterable[Found | Failed], pictures: Mapping[Path, Path]
) -> Iterator[tuple[Found | Failed, str | None]]:
    """Write a JPEG with boxes for every image that could be used.

    Args:
        results: of `predict_files`.
        pictures: image file -> the JPEG to write.
    Yields:
        Each result, in order, with the reason why its picture could not be drawn; None: it was.
    """
    yield from ordered_map(lambda result: (result, _write_picture(result, pictures)), results, pipeline_threads())


def _write_picture(result: Found | Failed, pictures: Mapping[Path, Path]) -> str | None:
    if isinstance(result, Failed):
        return None
    content = BytesIO()
    try:
        boxes.draw(result.image, result.detections).save(content, "JPEG", quality=92)
    except (OSError, ValueError, MemoryError) as error:  # the boxes are worth more than their picture
        return f"{result.file}: its boxes are in the JSON, but cannot be drawn ({error})"
    atomic_bytes(pictures[result.file], content.getvalue())
    return None
