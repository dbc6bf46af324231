"""Folders of a PASCAL VOC data set: XML files, images and lists of splits, in the common layouts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from siamdetr.data.readers.paths import visible_files, visible_subfolders, walk_files, walk_images
from siamdetr.data.splits import ALIASES, UNDIVIDED, common_name

ANNOTATION_FOLDERS = ("annotations", "annotation", "xml", "xmls", "labels", "label", "ann", "anno", "annos")
IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img", "photos", "pictures", "data", "jpgs", "pngs")
_LISTS = ("ImageSets/Main/*.txt", "ImageSets/*.txt")
_SUBFOLDERS = 50  # folders that are searched, at two depths
_PEEK_FILES = 20


@dataclass(frozen=True)
class VocFolder:
    """The folders of a split: its XML files, its images, and the file that lists it (None: all XML files)."""

    annotations: Path
    images: Path
    listing: Path | None


def find_voc_splits(root: Path, depth: int = 2) -> dict[str, VocFolder]:
    """Split name -> folders.

    Layouts: ImageSets/Main/*.txt beside Annotations and JPEGImages, folders of other names, or XML files beside images;
    in `root`, or in each of its subfolders (Roboflow's train/ and valid/, VOCdevkit's VOC2007/).
    """
    subfolders = visible_subfolders(root)
    annotations = next(
        (
            folder
            for name in ANNOTATION_FOLDERS
            for folder in subfolders
            if folder.name.lower() == name and has_annotations(folder, deep=True)
        ),
        None,
    )
    if annotations is not None:
        images = _image_folder(root, annotations, subfolders)
        listings = next((found for pattern in _LISTS if (found := visible_files(root, pattern))), [])
        named = {file.stem: VocFolder(annotations, images, file) for file in listings if not _is_class_list(file.stem)}
        return named or _parted(annotations, images) or {UNDIVIDED: VocFolder(annotations, images, None)}
    if has_annotations(root):
        return {UNDIVIDED: VocFolder(root, root, None)}
    inner = {folder: find_voc_splits(folder, depth - 1) for folder in subfolders[:_SUBFOLDERS]} if depth else {}
    return _merged({folder: splits for folder, splits in inner.items() if splits})


def annotation_files(folder: Path) -> Iterator[str]:
    """XML files below a folder, relative to it, sorted folder by folder."""
    return (path for path in walk_files(folder) if path.lower().endswith(".xml"))


def has_annotations(folder: Path, *, deep: bool = False) -> bool:
    """Whether one of the first XML files in `folder` has VOC's root element.

    The file may be truncated.

    Args:
        folder: to search.
        deep: also search its subfolders.
    """
    paths = (
        (folder / path for path in annotation_files(folder)) if deep else iter(visible_files(folder, "*.xml", "*.XML"))
    )
    for _, file in zip(range(_PEEK_FILES), paths, strict=False):
        with file.open("rb") as stream:
            if re.search(rb"<annotation[\s>/]", stream.read(4096)):
                return True
    return False


def _image_folder(root: Path, annotations: Path, subfolders: list[Path]) -> Path:
    """The image folder: one of the usual names, else one beside the annotations, else the root.

    Beside the annotations, the folder with most of the first images is taken.
    """
    usual = (folder for name in IMAGE_FOLDERS for folder in subfolders if folder.name.lower() == name)
    stems = {path[:-4] for _, path in zip(range(_PEEK_FILES), annotation_files(annotations), strict=False)}
    others = [folder for folder in subfolders if folder != annotations]
    for folder in (*usual, *others):
        if any(path.rpartition(".")[0] in stems for path in walk_images(folder)):
            return folder
    return next((folder for name in IMAGE_FOLDERS for folder in subfolders if folder.name.lower() == name), root)


def _parted(annotations: Path, images: Path) -> dict[str, VocFolder]:
    """Splits as Annotations/train, Annotations/val beside images/train, images/val."""
    parts = [folder for folder in visible_subfolders(annotations) if common_name(folder.name) in ALIASES.values()]
    if not parts or has_annotations(annotations):
        return {}
    return {
        folder.name: VocFolder(folder, images / folder.name if (images / folder.name).is_dir() else images, None)
        for folder in parts
    }


def _merged(found: dict[Path, dict[str, VocFolder]]) -> dict[str, VocFolder]:
    """The splits of several folders under one name each."""
    if len(found) == 1:
        ((folder, splits),) = found.items()
        if set(splits) != {UNDIVIDED} and not any(common_name(name) not in ALIASES.values() for name in splits):
            return splits
    merged: dict[str, VocFolder] = {}
    for folder, splits in found.items():
        if set(splits) == {UNDIVIDED}:
            merged[folder.name] = splits[UNDIVIDED]
        elif all(split.listing is None for split in splits.values()) and common_name(folder.name) in ALIASES.values():
            merged[folder.name] = VocFolder(folder, folder, None)  # train/camera1/*.xml, train/camera2/*.xml
        else:
            merged.update({f"{folder.name}/{name}": split for name, split in splits.items()})
    return merged


def _is_class_list(stem: str) -> bool:
    """Whether a list is that of one class of a split, such as "aeroplane_train"."""
    return "_" in stem and stem.rsplit("_", 1)[1] in ALIASES
