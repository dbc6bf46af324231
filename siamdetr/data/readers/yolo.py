"""YOLO text labels: a data.yaml with `train`, `val`, `test` and `names`.

One .txt per image, beside `images/` in `labels/`.

A row is `class cx cy w h`, fractions of the image, or `class x1 y1 x2 y2 x3 y3 ...`, a polygon whose box is taken.
Pixels need the image's size, so the header of every image is read. An image without a .txt is one without objects.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from siamdetr.data.builder import IndexBuilder
from siamdetr.data.index import DetectionIndex
from siamdetr.data.problems import ProblemLog
from siamdetr.data.readers.paths import FolderListing, relative, walk_images
from siamdetr.errors import DataError
from siamdetr.images.header import read_sizes
from siamdetr.system.progress import Progress

SPLIT_KEYS = ("train", "val", "valid", "test")
FRACTION_SLACK = 1.5  # beyond it a coordinate is not a fraction that rounding or a cut object explains, but a pixel
BOX_COLUMNS = 5
LEAST_POLYGON_COLUMNS = 7
EXPECTED = "expected a YOLO data.yaml with `names` and at least one of `train`, `val`, `test`"


@dataclass(frozen=True)
class YoloData:
    """A parsed data.yaml: class id -> name, and split -> folders or list files of images."""

    file: Path
    names: dict[int, str]
    splits: dict[str, tuple[Path, ...]]
    declared_classes: int | None


def find_yolo_file(root: Path) -> Path | None:
    """The YAML file directly in `root` that describes a YOLO data set, if any."""
    files = sorted((*root.glob("*.yaml"), *root.glob("*.yml")), key=lambda file: (file.stem != "data", file.name))
    for file in files:
        try:
            load_yolo(file)
        except DataError:
            if file.stem in ("data", "dataset"):
                return file  # let the reader say what is wrong with it
        else:
            return file
    return None


def load_yolo(file: Path) -> YoloData:
    """Parses a data.yaml.

    Raises:
        DataError: not readable, not YAML (with its line), or not a YOLO data set.
    """
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise DataError(f"{file}: {place}{error.problem}; {EXPECTED}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{file}: cannot be read ({error}); {EXPECTED}") from error
    if not isinstance(document, dict):
        raise DataError(f"{file}: got a {type(document).__name__}; {EXPECTED}")
    base = _base_folder(file, document.get("path"))
    splits = {key: _image_sources(document[key], base, file) for key in SPLIT_KEYS if document.get(key)}
    if not splits:
        raise DataError(f"{file}: got the keys {sorted(map(str, document))}; {EXPECTED}")
    declared = document.get("nc")
    return YoloData(
        file, _class_names(document.get("names"), file), splits, declared if isinstance(declared, int) else None
    )


def read_yolo(
    data: YoloData, split: str, *, root: Path, log: ProblemLog, progress: Progress | None = None
) -> DetectionIndex:
    """Reads one split.

    Args:
        data: from `load_yolo`.
        split: a key of `data.splits`.
        root: folder that the index's paths start from.
        log: notes what is left out.
        progress: called with (images read, all images).
    """
    if data.declared_classes not in (None, len(data.names)):
        log.add(
            "class-count-mismatch", relative(data.file, root), "nc", f"{data.declared_classes}, {len(data.names)} names"
        )
    labels = {key: label for label, key in enumerate(sorted(data.names))}
    builder = IndexBuilder(root, log)
    images = _list_images(data.splits[split], root, log)
    listing = FolderListing(root)
    sources: list[str] = []  # label file of each image
    for image, size in zip(images, read_sizes([root / image for image in images], progress=progress), strict=True):
        if size is None:
            empty = (root / image).is_file() and (root / image).stat().st_size == 0
            log.add("empty-file" if empty else "corrupt-image", image)
            continue
        position = builder.add_image(image, height=size[0], width=size[1])
        source = _label_file(image, listing)
        sources.append(source or "")
        if source is not None:
            _read_labels(builder, position, labels, source)
        elif log.thorough:
            log.add("no-label-file", image)
    if log.thorough:
        _note_orphans(images, listing, log)
    names = tuple(data.names[key] for key in labels)
    return builder.build(names, tuple(labels), lambda image, reference: (sources[image], f"line {reference}"))


def _read_labels(builder: IndexBuilder, image: int, labels: dict[int, int], source: str) -> None:
    """Adds the rows of one label file."""
    try:
        lines = (builder.root / source).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        builder.log.add("unreadable-annotations", source, "", str(error))
        return
    height, width = builder.size_of(image)
    for number, line in enumerate(lines, start=1):
        columns = line.split()
        if not columns:
            continue
        where = f"line {number}"
        row = _parse_row(columns)
        if row is None:
            builder.log.add("malformed-box", source, where, f"'{line.strip():.60}', expected class cx cy w h")
            continue
        category, box = row
        if category not in labels:
            builder.log.add("unknown-category", source, where, f"class {category}, names has {len(labels)}")
        elif any(abs(value) > FRACTION_SLACK for value in box if math.isfinite(value)):
            builder.log.add("not-a-fraction", source, where, f"'{line.strip():.60}', expected values in 0..1")
        else:
            x1, y1, x2, y2 = box
            builder.add_box(
                image, labels[category], (x1 * width, y1 * height, x2 * width, y2 * height), reference=number
            )


def _parse_row(columns: list[str]) -> tuple[int, tuple[float, float, float, float]] | None:
    """(class id, xyxy fractions) of one row; None when it is neither a box nor a polygon."""
    try:
        category = float(columns[0])
        values = [float(column) for column in columns[1:]]
    except ValueError:
        return None
    if not category.is_integer():
        return None
    if len(columns) == BOX_COLUMNS:
        cx, cy, w, h = values
        return int(category), (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    if len(columns) >= LEAST_POLYGON_COLUMNS and len(values) % 2 == 0:
        xs, ys = values[0::2], values[1::2]
        if not all(map(math.isfinite, values)):
            return int(category), (math.nan, math.nan, math.nan, math.nan)
        return int(category), (min(xs), min(ys), max(xs), max(ys))
    return None


def _list_images(sources: tuple[Path, ...], root: Path, log: ProblemLog) -> list[str]:
    """Images of a split, from the root.

    A list file names one a line, from its own folder or from the root.
    """
    images: dict[str, None] = {}
    for source in sources:
        if source.is_dir():
            head = relative(source, root)
            images.update(dict.fromkeys(_join(head, path) for path in walk_images(source)))
            continue
        for number, line in enumerate(_lines(source), start=1):
            if not line.strip():
                continue
            choices = [source.parent / line.strip(), root / line.strip()]
            path = next((choice for choice in choices if choice.is_file()), choices[0])
            name = relative(path, root)
            if not path.is_file():
                log.add("missing-image", name, "", f"{relative(source, root)}, line {number}")
            elif name in images:
                log.add("duplicate-image-id", relative(source, root), f"line {number}", name)
            else:
                images[name] = None
    return list(images)


def _lines(source: Path) -> list[str]:
    try:
        return source.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: cannot be read ({error}); expected a folder of images or a list of them") from error


def _label_file(image: str, listing: FolderListing) -> str | None:
    """labels/a/b.txt for images/a/b.jpg (the last folder of that name counts), else b.txt beside the image."""
    stem = os.path.splitext(image)[0] + ".txt"
    head, found, tail = f"/{stem}".rpartition("/images/")
    swapped = f"{head}/labels/{tail}"[1:] if found else stem
    return next((path for path in (swapped, stem) if path in listing), None)


def _note_orphans(images: list[str], listing: FolderListing, log: ProblemLog) -> None:
    """Label files in the folders that were looked into, to which no image belongs."""
    used = {path for path in (_label_file(image, listing) for image in images) if path is not None}
    for path in listing.names():
        if path.endswith(".txt") and "labels" in path.split("/") and path not in used:
            log.add("orphan-annotation", path)


def _base_folder(file: Path, path: Any) -> Path:
    """What the splits are relative to: `path`, from the file's folder.

    That folder itself when `path` is not there.
    """
    folder = file.parent / path if isinstance(path, str) else file.parent
    return folder if folder.is_dir() else file.parent


def _image_sources(value: Any, base: Path, file: Path) -> tuple[Path, ...]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in values):
        raise DataError(f"{file}: a split is {value!r}, expected a path or a list of paths")
    return tuple(_existing(base, file.parent, item) for item in values)


def _existing(base: Path, home: Path, item: str) -> Path:
    """`item` from the base; Roboflow writes ../train/images for train/images, so that is looked for as well."""
    choices = (base / item, home / item, home / item.removeprefix("../"))
    return next((choice for choice in choices if choice.exists()), choices[0])


def _class_names(names: Any, file: Path) -> dict[int, str]:
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(isinstance(key, int) for key in names):
        raise DataError(f"{file}: names is {names!r:.80}, expected a list of names or a map from class id to name")
    return {key: str(name) for key, name in names.items()}


def _join(head: str, path: str) -> str:
    return path if head == "." else f"{head}/{path}"
