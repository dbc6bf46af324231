"""Opens a data set in any of the layouts we read.

Says which layout it is, which splits it has, and reads one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

from siamdetr.data.index import DetectionIndex, concatenate
from siamdetr.data.problems import ProblemLog, refuse, summarize
from siamdetr.data.readers.coco import find_coco_files, read_coco
from siamdetr.data.readers.image_folder import read_folder
from siamdetr.data.readers.paths import walk_images
from siamdetr.data.readers.voc import VocFolder, find_voc_splits, read_voc
from siamdetr.data.readers.yolo import find_yolo_file, load_yolo, read_yolo
from siamdetr.data.splits import UNDIVIDED, find_split, split_names
from siamdetr.errors import DataError
from siamdetr.system.progress import Progress

logger = logging.getLogger(__name__)

Format = Literal["coco", "voc", "yolo", "folder"]
FORMATS: tuple[Format, ...] = get_args(Format)
LAYOUTS = "COCO (annotations/instances_*.json), YOLO (data.yaml), PASCAL VOC (Annotations/*.xml) or a folder of images"

ReadSplit = Callable[[ProblemLog, Progress | None], DetectionIndex]


@dataclass(frozen=True)
class DataSource:
    """A recognised data set.

    Args:
        format: its layout.
        root: folder that paths start from.
        splits: the data set's own name of each split -> its reader.
        everything: reads all images; None = the splits one after the other, which then do not overlap.
    """

    format: Format
    root: Path
    splits: dict[str, ReadSplit]
    everything: ReadSplit | None = None


def open_dataset(
    path: str | Path,
    *,
    format: str = "auto",
    split: str | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> DetectionIndex:
    """Reads a data set, or one split of it, into an index.

    Args:
        path: folder, COCO JSON or YOLO data.yaml.
        format: "auto", or one of "coco", "voc", "yolo", "folder". "folder" takes all images below `path`, unlabelled.
        split: the data set's own name or a common one ("train", "val", "test"); None = all that there is.
        strict: refuse data with any error or warning, instead of skipping and counting.
        progress: called with (done, total); total 0 = not known.
    Raises:
        DataError: nothing there, no such split, unreadable annotations, not one image; with `strict`, any problem.
    """
    source = find_source(path, format)
    limit = None if strict else ProblemLog().limit
    if split is not None:
        readers = [source.splits[find_split(split, list(source.splits), str(path))]]
    else:
        readers = [source.everything] if source.everything else list(source.splits.values())
    index = concatenate([read(ProblemLog(limit), progress) for read in readers])
    name = f"{path}, split '{split}'" if split is not None else str(path)
    if strict:
        refuse(index.problems, name)
    if len(index) == 0:
        found = summarize(index.problems) or "its list is empty"
        raise DataError(f"{name} ({source.format}): got zero images, expected at least one: {found}")
    if text := summarize(index.problems):
        logger.warning("%s: %s. `siamdetr doctor %s` lists them.", name, text, path)
    return index


def available_splits(path: str | Path, *, format: str = "auto") -> tuple[str, ...]:
    """Names that `open_dataset` takes as `split`, train first; empty for a data set that is not divided.

    A common name ("train", "val", "test") stands for the data set's own wherever only one has it.
    """
    return split_names(find_source(path, format).splits)


def detect_format(path: str | Path) -> Format:
    """Which layout `path` has.

    Raises:
        DataError: it does not exist, or has none of them.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder; expected {LAYOUTS}")
    if path.is_file():
        formats: dict[str, Format] = {".json": "coco", ".yaml": "yolo", ".yml": "yolo"}
        if path.suffix.lower() not in formats:
            raise DataError(f"{path}: got a file ending in '{path.suffix}', expected a folder, a .json or a data.yaml")
        return formats[path.suffix.lower()]
    if find_coco_files(path):
        return "coco"
    if find_yolo_file(path) is not None:
        return "yolo"
    if find_voc_splits(path):
        return "voc"
    if next(walk_images(path), None) is not None:
        return "folder"
    raise DataError(f"{path}: found no images and no annotations; expected {LAYOUTS}")


def find_source(path: str | Path, format: str = "auto") -> DataSource:
    """Recognises a data set without reading it.

    Raises:
        DataError: see `detect_format`; or `format` is not one of ours, or does not fit.
    """
    if format != "auto" and format not in FORMATS:
        raise DataError(f"format '{format}' is not known; expected auto, {', '.join(FORMATS)}")
    path = Path(path)
    kind = detect_format(path) if format == "auto" or not path.exists() else cast(Format, format)
    finders = {"coco": _coco_source, "voc": _voc_source, "yolo": _yolo_source, "folder": _folder_source}
    source = finders[kind](path)
    if not source.splits:
        raise DataError(f"{path}: found no {kind} data; expected {LAYOUTS}; --format auto recognises which")
    return source


def _coco_source(path: Path) -> DataSource:
    if path.is_file():
        root = path.parent.parent if path.parent.name == "annotations" else path.parent
        files = {path.stem.removeprefix("instances_"): path}
    else:
        root, files = path, find_coco_files(path)

    def reader(file: Path) -> ReadSplit:
        return lambda log, progress: read_coco(file, root=root, log=log, progress=progress)

    return DataSource("coco", root, {name: reader(file) for name, file in files.items()})


def _voc_source(path: Path) -> DataSource:
    splits = find_voc_splits(path)

    def reader(folder: VocFolder) -> ReadSplit:
        return lambda log, progress: read_voc(folder, root=path, log=log, progress=progress)

    listed = [folder for folder in splits.values() if folder.listing is not None]
    everything = reader(replace(listed[0], listing=None)) if listed else None  # trainval repeats train and val
    return DataSource("voc", path, {name: reader(folder) for name, folder in splits.items()}, everything)


def _yolo_source(path: Path) -> DataSource:
    file = path if path.is_file() else find_yolo_file(path)
    if file is None:
        return DataSource("yolo", path, {})
    data = load_yolo(file)

    def reader(name: str) -> ReadSplit:
        return lambda log, progress: read_yolo(data, name, root=data.file.parent, log=log, progress=progress)

    return DataSource("yolo", file.parent, {name: reader(name) for name in data.splits})


def _folder_source(path: Path) -> DataSource:
    return DataSource("folder", path, {UNDIVIDED: lambda log, progress: read_folder(path, log=log, progress=progress)})
