"""COCO detection JSON (https://cocodataset.org/#format-data).

Boxes are x y w h in pixels; category ids may have gaps and keep their value in `category_ids`, labels are their rank.
Segmentations are not read; a crowd is flagged. One pass over the parsed JSON fills arrays, nothing else stays behind.
"""

from __future__ import annotations

import json
import math
import os
from array import array
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from siamdetr.data.builder import IndexBuilder
from siamdetr.data.index import DetectionIndex
from siamdetr.data.problems import ProblemLog
from siamdetr.data.readers.paths import FolderListing, relative
from siamdetr.data.splits import UNDIVIDED, common_name
from siamdetr.errors import DataError
from siamdetr.images.header import is_image, read_size
from siamdetr.system.progress import Progress

LEFT_OUT = -1  # position of an image that is listed but was left out: its boxes go with it, silently
OTHER_TASKS = ("captions_", "person_keypoints_", "image_info_", "stuff_", "panoptic_")
PEEK_BYTES = 65536


def find_coco_files(root: Path) -> dict[str, Path]:
    """Split name -> annotation file.

    Annotations/*.json, *.json and <split>/*.json (Roboflow) below `root`.
    """
    found: dict[str, Path] = {}
    for file in sorted((*root.glob("annotations/*.json"), *root.glob("*.json"))):
        named = file.name.startswith("instances_") or file.stem == "_annotations.coco"
        if named or (not file.name.startswith((*OTHER_TASKS, ".")) and _looks_like_coco(file)):
            name = UNDIVIDED if file.stem == "_annotations.coco" else file.stem.removeprefix("instances_")
            found.setdefault(name, file)
    for file in sorted(root.glob("*/_annotations.coco.json")):
        found.setdefault(file.parent.name, file)
    return found


def read_coco(
    file: Path, *, root: Path, log: ProblemLog, image_folder: Path | None = None, progress: Progress | None = None
) -> DetectionIndex:
    """Reads one annotation file.

    Args:
        file: the JSON.
        root: folder that the index's paths start from.
        log: notes what is left out.
        image_folder: where `file_name` starts; None looks in the usual places.
        progress: called with (annotations read, all annotations).
    Raises:
        DataError: the file is not JSON (with line and column) or not COCO.
    """
    document = load_json(file)
    name = relative(file, root)
    builder = IndexBuilder(root, log)
    entries = [entry for entry in document["images"] if isinstance(entry, dict)]
    folder = image_folder or find_image_folder(entries, file, root)
    labels, class_names = _read_categories(document.get("categories", []), name, log)
    positions = _read_images(document["images"], folder, name, builder)
    _read_annotations(document.get("annotations", []), positions, labels, name, builder, progress)
    return builder.build(class_names, tuple(labels), lambda image, reference: (name, f"annotation {reference}"))


def load_json(file: Path) -> dict[str, Any]:
    """Parses an annotation file.

    Segmentations are dropped while parsing, which halves the memory of the parse.

    Raises:
        DataError: not readable, not JSON, or without the list "images".
    """
    expected = 'expected COCO JSON: {"images": [...], "annotations": [...], "categories": [...]}'
    try:
        with file.open(encoding="utf-8-sig") as stream:
            document = json.load(stream, object_hook=_without_segmentation)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: line {error.lineno}, column {error.colno}: {error.msg}; {expected}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of 5000 digits, a million brackets
        raise DataError(f"{file}: not a JSON text ({error}); {expected}") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); {expected}") from error
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        got = f"the keys {sorted(document)[:8]}" if isinstance(document, dict) else f"a {type(document).__name__}"
        raise DataError(f'{file}: got {got}, without a list "images"; {expected}')
    for key in ("annotations", "categories"):
        if not isinstance(document.get(key, []), list):
            raise DataError(f'{file}: "{key}" is a {type(document[key]).__name__}, expected a list; {expected}')
    return document


def find_image_folder(entries: list[dict[str, Any]], file: Path, root: Path) -> Path:
    """The folder in which most of the first images lie.

    Beside the JSON, root, images/, <split>/, images/<split>/.
    """
    stem = file.stem.removeprefix("instances_")
    splits = dict.fromkeys((stem, common_name(stem)))
    if common_name(stem) == "val":
        splits["valid"] = None
    bases = dict.fromkeys((file.parent, root, file.parent.parent))
    candidates = [
        base / sub
        for base in bases
        for sub in (
            "",
            "images",
            *splits,
            *(f"images/{split}" for split in splits),
            *(f"{split}/images" for split in splits),
        )
    ]
    names = [str(entry.get("file_name")) for entry in entries[:50]]
    hits = [sum(os.path.isfile(folder / name) for name in names) for folder in candidates]
    return candidates[int(np.argmax(hits))] if any(hits) else root


def _read_categories(categories: list[Any], name: str, log: ProblemLog) -> tuple[dict[int, int], tuple[str, ...]]:
    """Category id -> label (in order of the ids), and the class names."""
    names: dict[int, str] = {}
    for number, category in enumerate(categories):
        key = category.get("id") if isinstance(category, dict) else None
        text = category.get("name") if isinstance(category, dict) else None
        if not _is_integer(key) or not isinstance(text, str) or not text:
            log.add("bad-category", name, f"category number {number}", f"id {key!r}, name {text!r}")
        elif key in names:
            log.add("duplicate-category", name, f"category {key}", f"'{names[key]}' and '{text}' have one id")
        else:
            if text in names.values():
                log.add("duplicate-category", name, f"category {key}", f"a second class of the name '{text}'")
            names[key] = text
    ids = sorted(names)
    if log.thorough and ids and ids[-1] - ids[0] + 1 != len(ids):
        log.add("category-gap", name, "categories", f"{len(ids)} ids from {ids[0]} to {ids[-1]}")
    return {key: label for label, key in enumerate(ids)}, tuple(names[key] for key in ids)


def _read_images(entries: list[Any], folder: Path, name: str, builder: IndexBuilder) -> dict[Any, int]:
    """Adds the images; returns image id -> position, `LEFT_OUT` for those that were left out."""
    log, listing = builder.log, FolderListing(folder)
    prefix = relative(folder, builder.root)
    head = "" if prefix == "." else f"{prefix}/"
    positions: dict[Any, int] = {}
    files: set[str] = set()
    for number, entry in enumerate(entries):
        key = entry.get("id") if isinstance(entry, dict) else None
        path = entry.get("file_name") if isinstance(entry, dict) else None
        if not isinstance(key, int | str) or not isinstance(path, str) or not path:
            log.add("bad-image-entry", name, f"image number {number}", f"id {key!r}, file_name {path!r}")
            continue
        if key in positions:
            log.add("duplicate-image-id", name, f"image {key}", path)
            continue
        if path not in listing:
            positions[key] = LEFT_OUT
            log.add("missing-image", head + path, f"image {key}", f"listed in {name}")
            continue
        if path in files:
            log.add("duplicate-image-file", head + path, f"image {key}", f"listed in {name}")
        files.add(path)
        height, width = _side(entry.get("height")), _side(entry.get("width"))
        if not height or not width:
            height, width = read_size(folder / path) or (0, 0)
        positions[key] = builder.add_image(
            head + path, image_id=key if _is_integer(key) else None, height=height, width=width
        )
    if log.thorough:
        _note_unlisted(listing, files, head, log)
    return positions


def _read_annotations(
    annotations: list[Any],
    positions: dict[Any, int],
    labels: dict[int, int],
    name: str,
    builder: IndexBuilder,
    progress: Progress | None,
) -> None:
    """Adds the boxes, and notes those that belong to nothing."""
    log, ids, suspicion = builder.log, array("q"), CornerSuspicion()
    for number, annotation in enumerate(annotations):
        if progress is not None and number % 10000 == 0:
            progress(number, len(annotations))
        entry = annotation if isinstance(annotation, dict) else {}
        key = entry.get("id")
        reference = key if _is_integer(key) else number
        ids.append(reference)
        where = f"annotation {reference}"
        image = positions.get(entry.get("image_id")) if isinstance(entry.get("image_id"), int | str) else None
        if image is None:
            log.add("unknown-image", name, where, f"image_id {entry.get('image_id')!r}")
            continue
        if image == LEFT_OUT:
            continue
        category = entry.get("category_id")
        label = labels.get(category) if _is_integer(category) else None
        if label is None:
            log.add("unknown-category", name, where, f"category_id {category!r}, image {builder.path_of(image)}")
            continue
        box = entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
            log.add("malformed-box", name, where, f"bbox {box!r:.60}, expected [x, y, width, height]")
            continue
        x, y, width, height = map(_real, box)
        suspicion.look(x, y, width, height, builder.size_of(image))
        area = entry.get("area")
        builder.add_box(
            image,
            label,
            (x, y, x + width, y + height),
            area=_real(area) if isinstance(area, int | float) else math.nan,
            crowd=bool(entry.get("iscrowd", 0)),
            reference=reference,
        )
    if progress is not None:
        progress(len(annotations), len(annotations))
    _note_repeated_ids(ids, name, log)
    if suspicion.justified:
        log.add("xyxy-as-xywh", name, "annotations", suspicion.figures)


class CornerSuspicion:
    """Counts whether boxes make sense as x y w h, and whether they would as x1 y1 x2 y2."""

    LEAST_BOXES = 3
    SHARE_BEYOND = 0.2
    SHARE_CORNERS = 0.95

    def __init__(self) -> None:
        self.seen = self.beyond = self.corners = 0

    def look(self, x: float, y: float, width: float, height: float, size: tuple[int, int]) -> None:
        """Counts one box, pixels; `size` is the (height, width) of its image."""
        if not size[0]:
            return
        self.seen += 1
        self.beyond += x + width > size[1] + 1 or y + height > size[0] + 1
        self.corners += x < width <= size[1] + 1 and y < height <= size[0] + 1

    @property
    def justified(self) -> bool:
        """Many boxes leave the image as x y w h, and nearly all fit as x1 y1 x2 y2."""
        enough = self.seen >= self.LEAST_BOXES
        return (
            enough and self.beyond >= self.SHARE_BEYOND * self.seen and self.corners >= self.SHARE_CORNERS * self.seen
        )

    @property
    def figures(self) -> str:
        """The counts, in words."""
        return f"as x y w h {self.beyond} of {self.seen} boxes leave their image, as x1 y1 x2 y2 {self.corners} fit"


def _note_repeated_ids(ids: array[int], name: str, log: ProblemLog) -> None:
    values, counts = np.unique(np.array(ids, dtype=np.int64), return_counts=True)
    for value, count in zip(values[counts > 1], counts[counts > 1], strict=True):
        log.add("duplicate-annotation-id", name, f"annotation {value}", f"{count} times")


def _note_unlisted(listing: FolderListing, files: set[str], head: str, log: ProblemLog) -> None:
    """Images that lie in the folders of the listed ones and are not listed."""
    for path in listing.names():
        if is_image(path) and path not in files:
            log.add("unlisted-image", head + path)


def _looks_like_coco(file: Path) -> bool:
    """Whether the beginning of a file names a COCO key: results, settings and other JSON are passed over."""
    try:
        with file.open("rb") as stream:
            head = stream.read(PEEK_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError:
        return False
    return head.startswith(b"{") and any(key in head for key in (b'"images"', b'"annotations"'))


def _without_segmentation(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)
    return entry


def _real(value: float) -> float:
    """A JSON number as a float; integers beyond its range are infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _side(value: Any) -> int:
    """A height or width in pixels; 0 for anything that cannot be one."""
    return value if _is_integer(value) and 0 < value < 2**31 else 0


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
