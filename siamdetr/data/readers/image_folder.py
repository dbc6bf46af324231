"""A folder of images without labels, with all its subfolders, for pretraining."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from siamdetr.data.builder import IndexBuilder
from siamdetr.data.index import DetectionIndex
from siamdetr.data.problems import ProblemLog
from siamdetr.data.readers.paths import walk_files
from siamdetr.data.readers.unread import unread_among
from siamdetr.images.header import is_foreign_image, is_image
from siamdetr.system.progress import Progress


def read_folder(
    root: Path, *, log: ProblemLog, asked: bool = False, progress: Progress | None = None
) -> DetectionIndex:
    """All image files below `root`, sorted by folder and name.

    Files are not opened, so their sizes are (0, 0).

    Args:
        root: the folder.
        log: of pictures in other formats and, without `asked`, of files that may hold labels.
        asked: the user called it a folder of images: labels are ignored on purpose.
        progress: called with (images found, 0).
    """
    builder = IndexBuilder(root, log)
    others: list[str] = []

    def kept() -> Iterator[str]:
        for path in walk_files(root):
            if is_image(path):
                builder.add_image(path)
                if progress is not None and len(builder) % 1000 == 0:
                    progress(len(builder), 0)
                if not asked:
                    yield path
            elif is_foreign_image(path):
                log.add("foreign-image", path)
            elif not asked:
                yield path

    for path, remedy in unread_among(kept()):
        others.append(path)
        log.add("unread-labels", path, "", remedy)
    if log.thorough and not others:
        _note_class_folders(builder, log)
    return builder.build((), (), lambda image, reference: ("", ""))


def _note_class_folders(builder: IndexBuilder, log: ProblemLog) -> None:
    """Note folders that sort pictures by class, as in classification data sets.

    They are several folders of the same depth that hold all pictures.
    """
    folders = {builder.path_of(i).rpartition("/")[0] for i in range(len(builder))}
    depths = {folder.count("/") for folder in folders if folder}
    if len(folders) > 1 and "" not in folders and len(depths) == 1:
        for folder in sorted(folders):
            log.add("class-folders", folder)
