"""A plain folder of images, however deep, without labels: what pretraining reads."""

from __future__ import annotations

from pathlib import Path

from siamdetr.data.builder import IndexBuilder
from siamdetr.data.index import DetectionIndex
from siamdetr.data.problems import ProblemLog
from siamdetr.data.readers.paths import walk_images
from siamdetr.system.progress import Progress


def read_folder(root: Path, *, log: ProblemLog, progress: Progress | None = None) -> DetectionIndex:
    """All image files below `root`, sorted by folder and name; files are not opened, so sizes are (0, 0)."""
    builder = IndexBuilder(root, log)
    for path in walk_images(root):
        builder.add_image(path)
        if progress is not None and len(builder) % 1000 == 0:
            progress(len(builder), 0)
    return builder.build((), (), lambda image, reference: ("", ""))
