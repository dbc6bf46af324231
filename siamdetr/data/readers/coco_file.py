"""COCO annotation files: recognise them, and parse them without keeping the outlines in memory."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from siamdetr.data.readers.fields import as_number
from siamdetr.data.readers.paths import visible_files
from siamdetr.data.splits import ALIASES, UNDIVIDED, common_name
from siamdetr.errors import DataError

OUTLINE_KEY = "box of outline"  # bounds of the segmentation, in an annotation without a box
OTHER_TASKS = ("captions_", "image_info_", "stuff_", "panoptic_")
KEYPOINTS = "person_keypoints_"  # these have boxes, and are read if there is nothing else
PEEK_BYTES = 65536
EXPECTED = 'expected COCO JSON: {"images": [...], "annotations": [...], "categories": [...]}'
# Names that name no split: their folder does.
_COMMON_STEMS = (
    "_annotations.coco",
    "labels",
    "annotations",
    "annotation",
    "coco",
    "_annotations",
    "instances",
    "data",
)


def find_coco_files(root: Path) -> dict[str, Path]:
    """Split name -> annotation file.

    Annotations/*.json, *.json and <split>/*.json (Roboflow, FiftyOne) below `root`.
    """
    found: dict[str, Path] = {}
    keypoints: dict[str, Path] = {}
    for file in (*visible_files(root, "annotations/*.json"), *visible_files(root, "*.json")):
        if _is_coco(file):
            name = UNDIVIDED if file.stem in _COMMON_STEMS else _split_of(file.stem)
            (keypoints if file.name.startswith(KEYPOINTS) else found).setdefault(name, file)
    for file in visible_files(root, "*/*.json"):
        if file.parent.name != "annotations" and _is_coco(file):
            parted = file.stem in _COMMON_STEMS or common_name(file.parent.name) in ALIASES.values()
            found.setdefault(file.parent.name if parted else _split_of(file.stem), file)
    return found or keypoints


def load_coco_file(file: Path) -> dict[str, Any]:
    """Parse an annotation file.

    Segmentations are dropped while parsing, which halves the memory. An annotation with a segmentation and no box keeps
    the bounds of the segmentation under `OUTLINE_KEY`.

    Raises:
        DataError: not readable, not JSON, or without the list "images".
    """
    try:
        with file.open(encoding="utf-8-sig") as stream:
            document = json.load(stream, object_hook=_without_segmentation)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: line {error.lineno}, column {error.colno}: {error.msg}; {EXPECTED}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of 5000 digits, a million brackets
        raise DataError(f"{file}: not a JSON text ({error}); {EXPECTED}") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); {EXPECTED}") from error
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        got = f"the keys {sorted(document)[:8]}" if isinstance(document, dict) else f"a {type(document).__name__}"
        raise DataError(f'{file}: got {got}, without a list "images"; {EXPECTED}')
    for key in ("annotations", "categories"):
        if not isinstance(document.get(key, []), list):
            raise DataError(f'{file}: "{key}" is a {type(document[key]).__name__}, expected a list; {EXPECTED}')
    return document


def _split_of(stem: str) -> str:
    return stem.removeprefix("instances_").removeprefix(KEYPOINTS)


def _is_coco(file: Path) -> bool:
    named = file.name.startswith("instances_") or file.stem == "_annotations.coco"
    return named or (not file.name.startswith(OTHER_TASKS) and _looks_like_coco(file))


def _looks_like_coco(file: Path) -> bool:
    """Whether the beginning or the end of a file has a key of COCO.

    Results, settings and other JSON files have none.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(PEEK_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - PEEK_BYTES))
            tail = stream.read(PEEK_BYTES)
    except OSError:
        return False
    return head.startswith(b"{") and any(
        key in part for key in (b'"images"', b'"annotations"') for part in (head, tail)
    )


def _without_segmentation(entry: dict[str, Any]) -> dict[str, Any]:
    outline = entry.pop("segmentation", None)
    if outline and not entry.get("bbox"):
        entry[OUTLINE_KEY] = _bounds(outline)
    return entry


def _bounds(outline: Any) -> list[float] | None:
    """[x, y, width, height] of polygons or of a run-length code; None: it is neither."""
    if isinstance(outline, dict):
        return _bounds_of_code(outline)
    try:
        parts = outline if isinstance(outline[0], list) else [outline]
        values = [[as_number(value) for value in part] for part in parts]
        xs = [x for part in values for x in part[0::2]]
        ys = [y for part in values for y in part[1::2]]
        if len(xs) != len(ys) or len(xs) < 3:
            return None
        low_x, low_y = min(xs), min(ys)  # type: ignore[type-var]  # None raises TypeError
        return [low_x, low_y, max(xs) - low_x, max(ys) - low_y]  # type: ignore[list-item, operator, type-var]
    except (TypeError, KeyError, IndexError):
        return None


def _bounds_of_code(code: dict[str, Any]) -> list[float] | None:
    from pycocotools import mask

    try:
        height, width = (int(side) for side in code["size"])
        counts = code["counts"]
        if isinstance(counts, list):
            packed = mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        else:
            packed = {"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts}
        box = [float(value) for value in mask.toBbox(packed)]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    return box if all(map(math.isfinite, box)) else None
