"""COCO detection JSON (https://cocodataset.org/#format-data).

Boxes are x y w h in pixels of the upright file, whose own size is used. Category ids may have gaps: `category_ids`
keeps their values, and labels are their ranks. Outlines are read only where there is no box; crowds are flagged. One
pass over the parsed JSON fills arrays, and nothing else is kept.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from siamdetr.data.builder import IndexBuilder
from siamdetr.data.index import DetectionIndex
from siamdetr.data.problems import ProblemLog
from siamdetr.data.readers.class_list import ClassList, class_list
from siamdetr.data.readers.coco_file import OUTLINE_KEY, load_coco_file
from siamdetr.data.readers.coco_images import AMBIGUOUS, LEFT_OUT, image_folders, read_images
from siamdetr.data.readers.fields import as_flag, as_id, as_integer, as_number
from siamdetr.data.readers.paths import relative
from siamdetr.data.readers.suspicions import CornerSuspicion
from siamdetr.system.progress import Progress


def read_coco(
    file: Path, *, root: Path, log: ProblemLog, image_folder: Path | None = None, progress: Progress | None = None
) -> DetectionIndex:
    """Read one annotation file.

    Args:
        file: the JSON.
        root: folder that the index's paths start from.
        log: of what is left out.
        image_folder: that `file_name` is relative to; None: the usual places.
        progress: called with (headers or annotations read, all of them).
    Raises:
        DataError: the file is not JSON (with line and column) or not COCO.
    """
    document = load_coco_file(file)
    name = relative(file, root)
    log.note_read(name)
    annotations = document.get("annotations", [])
    classes = _read_categories(document.get("categories", []), annotations, name, log)
    builder = IndexBuilder(root, log)
    folders = [image_folder] if image_folder else image_folders(file, root)
    positions = read_images(document["images"], folders, name, builder, progress)
    _read_annotations(annotations, positions, classes.labels, name, builder, progress)
    return builder.build(classes.names, classes.ids, lambda image, reference: (name, f"annotation {reference}"))


def _read_categories(categories: list[Any], annotations: list[Any], name: str, log: ProblemLog) -> ClassList:
    names: dict[int, str] = {}
    ambiguous: set[int] = set()
    for number, category in enumerate(categories):
        entry = category if isinstance(category, dict) else {}
        key, text = as_integer(entry.get("id")), entry.get("name")
        if key is None or not isinstance(text, str) or not text:
            log.add("bad-category", name, f"category number {number}", f"id {entry.get('id')!r}, name {text!r}")
        elif names.setdefault(key, text) != text:
            ambiguous.add(key)
            log.add("ambiguous-category", name, f"category {key}", f"'{names[key]}' and '{text}'")
    for key in ambiguous:
        del names[key]
    if log.thorough and names and max(names) - min(names) + 1 != len(names):
        log.add("category-gap", name, "categories", f"{len(names)} ids from {min(names)} to {max(names)}")
    counts: Counter[int] = Counter()
    if len(set(names.values())) < len(names):
        keys = (as_integer(entry.get("category_id")) for entry in annotations if isinstance(entry, dict))
        counts.update(key for key in keys if key is not None)
    return class_list(names, name, log, counts)


def _read_annotations(
    annotations: list[Any],
    positions: dict[int | str, int],
    labels: dict[int, int],
    name: str,
    builder: IndexBuilder,
    progress: Progress | None,
) -> None:
    """Add the boxes, and note those without an image or a category."""
    log, ids, suspicion = builder.log, array("q"), CornerSuspicion()
    for number, annotation in enumerate(annotations):
        if progress is not None and number % 10000 == 0:
            progress(number, len(annotations))
        entry = annotation if isinstance(annotation, dict) else {}
        key = as_integer(entry.get("id"))
        reference = number if key is None else key
        ids.append(reference)
        where = f"annotation {reference}"
        image = _position(entry.get("image_id"), positions)
        if image is None or image == AMBIGUOUS:
            kind = "unknown-image" if image is None else "ambiguous-box"
            log.add(kind, name, where, f"image_id {entry.get('image_id')!r:.60}")
            continue
        if image == LEFT_OUT:
            continue
        category = entry.get("category_id")
        label = labels.get(category) if type(category) is int else labels.get(as_integer(category))  # type: ignore[arg-type]
        if label is None:
            log.add("unknown-category", name, where, f"category_id {category!r:.60}, image {builder.path_of(image)}")
            continue
        box = _box_of(entry, where, name, log)
        crowd = as_flag(entry.get("iscrowd"))
        if box is None or crowd is None:
            what = f"iscrowd {entry.get('iscrowd')!r:.40}, expected 0 or 1" if box else _malformed(entry)
            log.add("malformed-box", name, where, what)
            continue
        x, y, width, height = box
        suspicion.look(x, y, width, height, builder.size_of(image))
        area = entry.get("area")
        number_of_area = as_number(area)
        if number_of_area is None and area is not None:
            log.add("bad-field", name, where, f"area {area!r:.40}")
        builder.add_box(
            image,
            label,
            (x, y, x + width, y + height),
            area=math.nan if number_of_area is None else number_of_area,
            crowd=crowd,
            reference=reference,
        )
    if progress is not None:
        progress(len(annotations), len(annotations))
    _note_repeated_ids(ids, name, log)
    if suspicion.justified:
        log.add("xyxy-as-xywh", name, "annotations", suspicion.figures)


def _position(value: Any, positions: dict[int | str, int]) -> int | None:
    """The position of an image by its id.

    An id may be a text in one place and a number in the other.
    """
    if type(value) is int and value in positions:
        return positions[value]
    key = as_id(value)
    if key is None or key in positions:
        return None if key is None else positions[key]
    other: int | str = str(key) if isinstance(key, int) else int(key) if key.isascii() and key.isdigit() else key
    return positions.get(other)


def _box_of(entry: dict[str, Any], where: str, name: str, log: ProblemLog) -> list[float] | None:
    """[x, y, width, height] of an annotation, or of its outline; None: neither has four numbers."""
    box = entry.get("bbox")
    if not box and OUTLINE_KEY in entry:
        box = entry[OUTLINE_KEY]
        if box is not None and log.thorough:
            log.add("outline-box", name, where)
    if not isinstance(box, list) or len(box) != 4:
        return None
    numbers = [value if type(value) is float else as_number(value) for value in box]
    return None if None in numbers else numbers  # type: ignore[return-value]


def _malformed(entry: dict[str, Any]) -> str:
    outline = ", a segmentation that is neither polygons nor a run-length code" if OUTLINE_KEY in entry else ""
    return f"bbox {entry.get('bbox')!r:.60}{outline}, expected [x, y, width, height]"


def _note_repeated_ids(ids: array[int], name: str, log: ProblemLog) -> None:
    values, counts = np.unique(np.array(ids, dtype=np.int64), return_counts=True)
    for value, count in zip(values[counts > 1], counts[counts > 1], strict=True):
        log.add("duplicate-annotation-id", name, f"annotation {value}", f"{count} times")
