"""Read scored boxes of another program, in COCO's results format, as proposals."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from siamdetr.data.index import DetectionIndex
from siamdetr.data.readers.fields import as_id
from siamdetr.data.readers.paths import split_name
from siamdetr.errors import DataError
from siamdetr.proposals.methods import Boxes

logger = logging.getLogger(__name__)

EXPECTED = (
    'expected COCO\'s results format, a list of {"image_id": 1, "bbox": [x, y, width, height], "score": 0.9} in pixels; '
    '"file_name" may stand for "image_id", and without "score" the order of the boxes counts'
)


def read_objectness(path: str | Path, index: DetectionIndex) -> dict[int, Boxes]:
    """Scored boxes by image.

    An image is found by its file name where the entry has one, else by the data set's own id. Images of data sets
    without ids (plain folders, YOLO, PASCAL VOC) are found by name only: we number them, and the numbers change with
    every new file.

    Args:
        path: a JSON list of entries, see `EXPECTED`; other fields, such as a category, are ignored.
        index: the images; a warning counts the boxes of other images, which are left out.
    Returns:
        image id to [n, 4] float32 xyxy pixels, the highest score first.
    Raises:
        DataError: not such a file, an entry that names no image, or no box for any image of the data set.
    """
    path = Path(path)
    entries = _entries(path)
    images = _Images(index)
    found: defaultdict[int, list[tuple[float, int, list[float]]]] = defaultdict(list)
    strange = 0
    for number, entry in enumerate(entries):
        position = images.position(entry, path, number)
        score, box = _checked(path, number, entry)
        if position is None:
            strange += 1
            continue
        corners = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
        found[int(index.image_ids[position])].append((-score, number, corners))
    if not found:
        raise DataError(
            f"{path}: {len(entries):,} boxes, and none for an image of {index.root} ({images.example}); "
            "is it of another data set?"
        )
    if strange:
        logger.warning("%s: %d of %d boxes are of images that %s has not", path, strange, len(entries), index.root)
    return {
        image_id: np.asarray([box for *_, box in sorted(rows)], dtype=np.float32) for image_id, rows in found.items()
    }


class _Images:
    """Finds the image that an entry means."""

    def __init__(self, index: DetectionIndex) -> None:
        self.numbered = index.numbered
        self.by_id = {} if index.numbered else index.positions_of_ids()
        self.by_path = {index.relative_path(i): i for i in range(len(index))}
        names = [path.rpartition("/")[2] for path in self.by_path]
        counts = Counter(names)
        self.by_name = {name: i for i, name in enumerate(names) if counts[name] == 1}
        ids = "" if index.own_ids else f"ids {index.image_ids.min()} to {index.image_ids.max()}"
        self.example = ids if ids and not index.numbered else f"such as {next(iter(self.by_path))}"

    def position(self, entry: Any, path: Path, number: int) -> int | None:
        """The position of an entry's image in the index; None: it is not there.

        Raises:
            DataError: the entry names no image, or has a number where images have names only.
        """
        entry = entry if isinstance(entry, dict) else {}
        name, key = entry.get("file_name"), as_id(entry.get("image_id"))
        if isinstance(name, str) and name:
            parts = split_name(name)
            tails = ["/".join(parts[i:]) for i in range(len(parts))]
            found = next((self.by_path[tail] for tail in tails if tail in self.by_path), None)
            return self.by_name.get(parts[-1]) if found is None and parts else found
        if key is None:
            raise DataError(f"{path}: entry {number} is {json.dumps(entry)[:80]}; {EXPECTED}")
        if self.numbered:
            as_path = next((i for i in (self.by_path.get(str(key)), self.by_name.get(str(key))) if i is not None), None)
            if isinstance(key, str):
                return as_path
            raise DataError(
                f"{path}: entry {number} names image {key} by its number, but these images have no ids of their own; "
                'give each box the name of its file: "file_name"'
            )
        return self.by_id.get(key)


def _entries(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file of boxes; {EXPECTED}") from None
    except ValueError as error:
        raise DataError(f"{path}: not a JSON file ({error}); {EXPECTED}") from None
    if not isinstance(entries, list):
        raise DataError(f"{path}: got a {type(entries).__name__}, {EXPECTED}")
    return entries


def _checked(path: Path, number: int, entry: Any) -> tuple[float, list[float]]:
    """Score and box of an entry; the score is 0 where there is none, which keeps the order of the file."""
    try:
        score, box = float(entry.get("score", 0)), [float(side) for side in entry["bbox"]]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DataError(f"{path}: entry {number} is {json.dumps(entry)[:80]}; {EXPECTED}") from None
    if len(box) != 4 or not all(map(math.isfinite, (score, *box))) or box[2] <= 0 or box[3] <= 0:
        raise DataError(f"{path}: entry {number} has score {score} and bbox {box}; {EXPECTED}, with sides above 0")
    return score, box
