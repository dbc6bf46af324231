"""YOLO text labels: one .txt per image, beside `images/` in `labels/` or beside the image.

A row is one of these, in fractions of the image:
- `class cx cy w h`;
- `class x1 y1 x2 y2 x3 y3 ...`, a polygon or a rotated box, of which the bounds are taken;
- if data.yaml has kpt_shape, a box and keypoints, of which the box is taken.

Pixels need the image's size, so the header of every image is read. An image without a .txt has no objects.
"""

from __future__ import annotations

import math
from pathlib import Path

from siamdetr.data.builder import IndexBuilder
from siamdetr.data.index import DetectionIndex
from siamdetr.data.problems import ProblemLog
from siamdetr.data.readers.class_list import class_list
from siamdetr.data.readers.paths import FolderListing, relative, split_name, walk_files
from siamdetr.data.readers.sizes import HeaderReader, usable_size
from siamdetr.data.readers.suspicions import KeypointSuspicion
from siamdetr.data.readers.yolo_layout import YoloData, label_choices
from siamdetr.errors import DataError
from siamdetr.images.header import is_foreign_image, is_image
from siamdetr.system.progress import Progress

FRACTION_SLACK = 1.5  # a coordinate beyond it is a pixel, not the fraction of a truncated object
BOX_COLUMNS = 5
LEAST_POLYGON_COLUMNS = 7

Row = tuple[int, tuple[float, float, float, float]]  # class id, xyxy fractions


def read_yolo(
    data: YoloData, split: str, *, root: Path, log: ProblemLog, progress: Progress | None = None
) -> DetectionIndex:
    """Read one split.

    Args:
        data: from `load_yolo`.
        split: a key of `data.splits`.
        root: folder that the index's paths start from.
        log: of what is left out.
        progress: called with (images read, all images).
    Raises:
        DataError: the list of images cannot be read, or rows look like keypoints that data.yaml does not declare.
    """
    description = relative(data.file, root)
    log.note_read(description)
    if data.declared_classes not in (None, len(data.names)):
        log.add("class-count-mismatch", description, "nc", f"{data.declared_classes}, {len(data.names)} names")
    classes = class_list(data.names, description, log)
    builder = IndexBuilder(root, log)
    images = _list_images(data.splits[split], root, log)
    listing = FolderListing(root)
    sources: list[str] = []  # label file of each image
    suspicion = KeypointSuspicion()
    with HeaderReader(root, len(images)) as reader:
        headers = reader.read(images, progress)
    for image, header in zip(images, headers, strict=True):
        size = usable_size(header, image, "", log)
        source = next((path for path in label_choices(image) if path in listing), None)
        lines = None if source is None else _label_lines(root / source, source, log)
        if size is None or (source is not None and lines is None):
            continue
        position = builder.add_image(image, height=size[0], width=size[1])
        sources.append(source or "")
        if source is not None and lines is not None:
            _add_rows(builder, position, lines, classes.labels, source, keypoints=data.keypoints, suspicion=suspicion)
        elif log.thorough:
            log.add("no-label-file", image)
    if suspicion.justified and not data.keypoints:
        raise DataError(
            f"{data.file}: {suspicion.fitting} of {suspicion.seen} rows with {suspicion.lengths.pop() + 1} columns are a box with points "
            "inside it: keypoints, not polygons. Write their number into data.yaml, such as kpt_shape: [17, 3], and the boxes are read"
        )
    if log.thorough:
        _note_orphans(images, listing, log)
    return builder.build(classes.names, classes.ids, lambda image, reference: (sources[image], f"line {reference}"))


def _label_lines(file: Path, source: str, log: ProblemLog) -> list[str] | None:
    """The lines of a label file; None, with a note in the log, if it cannot be read."""
    log.note_read(source)
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        log.add("unreadable-annotations", source, "", str(error))
        return None


def _add_rows(
    builder: IndexBuilder,
    image: int,
    lines: list[str],
    labels: dict[int, int],
    source: str,
    *,
    keypoints: int,
    suspicion: KeypointSuspicion,
) -> None:
    """Add the rows of one label file."""
    height, width = builder.size_of(image)
    for number, line in enumerate(lines, start=1):
        columns = line.split()
        if not columns:
            continue
        where = f"line {number}"
        row = _parse_row(columns, keypoints, suspicion)
        if row is None:
            expected = f"class cx cy w h and {keypoints} numbers of keypoints" if keypoints else "class cx cy w h"
            what = f"'{line.strip():.60}', {len(columns)} columns, expected {expected}"
            builder.log.add("malformed-box", source, where, what)
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


def _parse_row(columns: list[str], keypoints: int, suspicion: KeypointSuspicion) -> Row | None:
    """Class and box of one row.

    None: it is no box, no polygon, and no box with as many keypoints as were declared.
    """
    try:
        category = float(columns[0])
        values = [float(column) for column in columns[1:]]
    except ValueError:
        return None
    if not category.is_integer():
        return None
    if len(columns) == BOX_COLUMNS or (keypoints and len(columns) == BOX_COLUMNS + keypoints):
        cx, cy, w, h = values[:4]
        return int(category), (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    if keypoints or len(columns) < LEAST_POLYGON_COLUMNS or len(values) % 2:
        return None
    if not all(map(math.isfinite, values)):
        return int(category), (math.nan, math.nan, math.nan, math.nan)
    suspicion.look(values)
    xs, ys = values[0::2], values[1::2]
    return int(category), (min(xs), min(ys), max(xs), max(ys))


def _list_images(sources: tuple[Path, ...], root: Path, log: ProblemLog) -> list[str]:
    """Images of a split, relative to the root.

    A list file has one image per line, relative to its own folder or to the root.
    """
    images: dict[str, None] = {}
    for source in sources:
        if source.is_dir():
            head = relative(source, root)
            for path in walk_files(source):
                if is_image(path):
                    images[_join(head, path)] = None
                elif is_foreign_image(path):
                    log.add("foreign-image", _join(head, path))
            continue
        log.note_read(relative(source, root))
        for number, line in enumerate(_lines(source), start=1):
            if not line.strip():
                continue
            file = _listed_image(line.strip(), source, root)
            name, where = relative(file, root), f"line {number}"
            if not file.is_file():
                log.add("missing-image", name, "", f"{relative(source, root)}, {where}")
            elif name in images:
                log.add("duplicate-image-id", relative(source, root), where, name)
            else:
                images[name] = None
    return list(images)


def _listed_image(text: str, source: Path, root: Path) -> Path:
    """The image that a line of a list means.

    If it is a path of another machine, leading folders are dropped until the file exists.
    """
    parts = split_name(text)
    tails = ["/".join(parts[i:]) for i in range(len(parts)) if parts[i] != ".."]
    choices = [base / name for name in (text, *tails) for base in (source.parent, root)]
    return next((choice for choice in choices if choice.is_file()), choices[0])


def _lines(source: Path) -> list[str]:
    try:
        return source.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: cannot be read ({error}); expected a folder of images or a list of them") from error


def _note_orphans(images: list[str], listing: FolderListing, log: ProblemLog) -> None:
    """Note label files without an image, in the folders that were read."""
    used = {path for image in images for path in label_choices(image)}
    for path in listing.names():
        if path.endswith(".txt") and "labels" in path.split("/") and path not in used and path[-11:] != "classes.txt":
            log.add("orphan-annotation", path)


def _join(head: str, path: str) -> str:
    return path if head == "." else f"{head}/{path}"
