"""Recognise a data set in any of the layouts that we read: its layout, splits, and readers.

A command recognises its data once and passes the `Source` on.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

from siamdetr.data.concatenate import concatenate
from siamdetr.data.index import DetectionIndex
from siamdetr.data.problems import ProblemLog, refuse, summarize
from siamdetr.data.readers.coco import read_coco
from siamdetr.data.readers.coco_file import find_coco_files
from siamdetr.data.readers.image_folder import read_folder
from siamdetr.data.readers.paths import walk_images
from siamdetr.data.readers.unread import unread_labels
from siamdetr.data.readers.voc import read_voc, voc_class_names
from siamdetr.data.readers.voc_layout import VocFolder, find_voc_splits
from siamdetr.data.readers.yolo import read_yolo
from siamdetr.data.readers.yolo_layout import find_yolo_file, find_yolo_names, load_yolo
from siamdetr.data.splits import UNDIVIDED, find_split, split_names
from siamdetr.errors import DataError
from siamdetr.system.progress import Progress

logger = logging.getLogger(__name__)

Format = Literal["coco", "voc", "yolo", "folder"]
FORMATS: tuple[Format, ...] = get_args(Format)
LAYOUTS = "COCO (annotations/instances_*.json), YOLO (data.yaml or classes.txt), PASCAL VOC (Annotations/*.xml) or a folder of images"
_FILE_FORMATS: dict[str, Format] = {".json": "coco", ".yaml": "yolo", ".yml": "yolo", ".data": "yolo"}

ReadSplit = Callable[[ProblemLog, Progress | None], DetectionIndex]


@dataclass(frozen=True)
class Source:
    """A recognised data set.

    Args:
        path: as the user gave it; named in messages.
        format: its layout.
        root: folder that paths are relative to.
        splits: the data set's own name of each split -> its reader.
        everything: reads all images; None = the splits one after the other, which then do not overlap.
    """

    path: Path
    format: Format
    root: Path
    splits: dict[str, ReadSplit]
    everything: ReadSplit | None = None

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names that `open` accepts as `split`, train first; empty for a data set without splits.

        A common name ("train", "val", "test") stands for the data set's own name if only one split has it.
        """
        return split_names(self.splits)

    def first_split(self, names: Sequence[str]) -> str | None:
        """The first of `names` that is a split of this data set; None: none of them is."""
        return next((name for name in names if name in self.split_names), None)

    def open(
        self, split: str | None = None, *, strict: bool = False, progress: Progress | None = None
    ) -> DetectionIndex:
        """Read the data set, or one split of it, into an index.

        Args:
            split: the data set's own name or a common one ("train", "val", "test"); None = all images.
            strict: refuse data with any error or warning, instead of skipping and counting.
            progress: called with (done, total); total 0 = not known.
        Raises:
            DataError: no such split, unreadable annotations, or no image; with `strict`, any problem.
        """
        limit = None if strict else ProblemLog().limit
        if split is not None:
            readers = [self.splits[find_split(split, list(self.splits), str(self.path))]]
        else:
            readers = [self.everything] if self.everything else list(self.splits.values())
        logs = [ProblemLog(limit) for _ in readers]
        index = concatenate([read(log, progress) for read, log in zip(readers, logs, strict=True)])
        if index.num_boxes == 0 and self.format != "folder" and len(readers) == len(self.splits):
            index = self._with_unread(index, frozenset().union(*(log.read_files for log in logs)))
        name = f"{self.path}, split '{split}'" if split is not None else str(self.path)
        if strict:
            refuse(index.problems, name)
        text = summarize(index.problems)
        if len(index) == 0:
            found = text or "its list is empty"
            raise DataError(f"{name} ({self.format}): got zero images, expected at least one: {found}")
        if text:
            logger.warning("%s: %s. `siamdetr doctor %s` lists them.", name, text, self.path)
        return index

    def _with_unread(self, index: DetectionIndex, used: frozenset[str]) -> DetectionIndex:
        """The index with a problem for each unread file that may hold labels, if no label was found."""
        log = ProblemLog()
        for path, remedy in unread_labels(self.root, used):
            log.add("unread-labels", path, "", remedy)
        return replace(index, problems=(*index.problems, *log.problems()))


def open_dataset(
    path: str | Path,
    *,
    format: str = "auto",
    split: str | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> DetectionIndex:
    """Recognise and read a data set, or one split of it; see `find_source` and `Source.open`."""
    return find_source(path, format).open(split, strict=strict, progress=progress)


def available_splits(path: str | Path, *, format: str = "auto") -> tuple[str, ...]:
    """The names of a data set's splits; see `Source.split_names`."""
    return find_source(path, format).split_names


def detect_format(path: str | Path) -> Format:
    """The layout of `path`.

    Raises:
        DataError: it does not exist, or has none of them.
    """
    return find_source(path).format


def find_source(path: str | Path, format: str = "auto") -> Source:
    """Recognise a data set without reading it.

    Args:
        path: folder, COCO JSON, YOLO data.yaml or Darknet obj.data.
        format: "auto", or one of "coco", "voc", "yolo", "folder". "folder" takes all images below `path`, unlabelled.
    Raises:
        DataError: it does not exist, has none of the layouts, or `format` is unknown or does not fit.
    """
    if format != "auto" and format not in FORMATS:
        raise DataError(f"format '{format}' is not known; expected auto, {', '.join(FORMATS)}")
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder; expected {LAYOUTS}")
    if format == "auto" and path.is_file():
        if path.suffix.lower() not in _FILE_FORMATS:
            raise DataError(f"{path}: got a file ending in '{path.suffix}', expected a folder, a .json or a data.yaml")
        format = _FILE_FORMATS[path.suffix.lower()]
    if format != "auto":
        kind = cast(Format, format)
        source = _FINDERS[kind](path)
        if source is None:
            raise DataError(f"{path}: found no {kind} data; expected {LAYOUTS}; --format auto recognises which")
        return source
    for find in (_coco_source, _yolo_source, _voc_source, _names_source, _unsorted_source):
        source = find(path)
        if source is not None:
            return source
    raise DataError(f"{path}: found no images and no annotations; expected {LAYOUTS}")


def _coco_source(path: Path) -> Source | None:
    if path.is_file():
        root = path.parent.parent if path.parent.name == "annotations" else path.parent
        files = {path.stem.removeprefix("instances_"): path}
    else:
        root, files = path, find_coco_files(path)

    def reader(file: Path) -> ReadSplit:
        return lambda log, progress: read_coco(file, root=root, log=log, progress=progress)

    return Source(path, "coco", root, {name: reader(file) for name, file in files.items()}) if files else None


def _voc_source(path: Path) -> Source | None:
    splits = find_voc_splits(path)

    @functools.cache
    def names() -> tuple[str, ...]:
        return voc_class_names(path, [folder.annotations for folder in splits.values()])

    def reader(folder: VocFolder) -> ReadSplit:
        return lambda log, progress: read_voc(folder, root=path, log=log, class_names=names(), progress=progress)

    listed = [folder for folder in splits.values() if folder.listing is not None]
    alone = len({folder.annotations for folder in splits.values()}) == 1
    everything = (
        reader(replace(listed[0], listing=None)) if listed and alone else None
    )  # trainval repeats train and val
    readers = {name: reader(folder) for name, folder in splits.items()}
    return Source(path, "voc", path, readers, everything) if splits else None


def _yolo_source(path: Path) -> Source | None:
    file = path if path.is_file() else find_yolo_file(path)
    return None if file is None else _described(path, file)


def _names_source(path: Path) -> Source | None:
    """YOLO labels without a description file, but with a list of class names."""
    file = find_yolo_names(path)
    return None if file is None else _described(path, file)


def _described(path: Path, file: Path) -> Source:
    data = load_yolo(file)
    root = file.parent if path.is_file() else path

    def reader(name: str) -> ReadSplit:
        return lambda log, progress: read_yolo(data, name, root=root, log=log, progress=progress)

    return Source(path, "yolo", root, {name: reader(name) for name in data.splits})


def _folder_source(path: Path, *, asked: bool = True) -> Source:
    def read(log: ProblemLog, progress: Progress | None) -> DetectionIndex:
        return read_folder(path, log=log, asked=asked, progress=progress)

    return Source(path, "folder", path, {UNDIVIDED: read})


def _unsorted_source(path: Path) -> Source | None:
    return None if next(walk_images(path), None) is None else _folder_source(path, asked=False)


_FINDERS: dict[Format, Callable[[Path], Source | None]] = {
    "coco": _coco_source,
    "voc": _voc_source,
    "yolo": lambda path: _yolo_source(path) or (None if path.is_file() else _names_source(path)),
    "folder": _folder_source,
}
