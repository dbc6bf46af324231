"""Read boxes with objectness scores from another program, in COCO's results format, as proposals."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import DataError
from siamdetr.proposals.methods import Boxes

EXPECTED = (
    'expected COCO\'s results format, a list of {"image_id": 1, "bbox": [x, y, width, height], "score": 0.9} in pixels'
)


def read_objectness(path: str | Path, index: DetectionIndex) -> dict[int, Boxes]:
    """Scored boxes by image.

    Args:
        path: a JSON list of {"image_id", "bbox": [x, y, w, h] in pixels, "score"}; other entries, such as a category, are ignored.
        index: the images that the ids belong to; boxes of other images are left out.
    Returns:
        image id to [n, 4] float32 xyxy pixels, the highest score first.
    Raises:
        DataError: not such a file, or it has no box for any image of the data set.
    """
    path = Path(path)
    entries = _entries(path)
    known = set(index.image_ids.tolist())
    found: defaultdict[int, list[tuple[float, list[float]]]] = defaultdict(list)
    for number, entry in enumerate(entries):
        image_id, score, box = _checked(path, number, entry)
        if image_id in known:
            found[image_id].append((-score, [box[0], box[1], box[0] + box[2], box[1] + box[3]]))
    if not found:
        raise DataError(
            f"{path}: {len(entries):,} boxes, and none for an image of {index.root} (ids {min(known)} to {max(known)}); "
            "is it of another data set?"
        )
    return {
        image_id: np.asarray([box for _, box in sorted(rows)], dtype=np.float32) for image_id, rows in found.items()
    }


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


def _checked(path: Path, number: int, entry: Any) -> tuple[int, float, list[float]]:
    try:
        image_id, score, box = int(entry["image_id"]), float(entry["score"]), [float(side) for side in entry["bbox"]]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path}: entry {number} is {json.dumps(entry)[:80]}; {EXPECTED}") from None
    if len(box) != 4 or not all(map(math.isfinite, (score, *box))) or box[2] <= 0 or box[3] <= 0:
        raise DataError(f"{path}: entry {number} has score {score} and bbox {box}; {EXPECTED}, with sides above 0")
    return image_id, score, box
