"""Detections in COCO's results format.

A JSON list of {image_id, category_id, bbox [x, y, w, h], score}.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from siamdetr.data.index import DetectionIndex
from siamdetr.data.readers.fields import as_id, as_integer
from siamdetr.errors import DataError
from siamdetr.system.atomic_file import atomic_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Results:
    """M scored boxes of a data set's images, with the data set's own ids.

    Attributes:
        image_ids: [M] int64.
        category_ids: [M] int64.
        boxes: [M, 4] float64 (x0, y0, x1, y1) pixels.
        scores: [M] float64.
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)

    def of_images(self, image_ids: NDArray[np.int64]) -> Results:
        """The boxes of some images."""
        kept = np.isin(self.image_ids, image_ids)
        return Results(self.image_ids[kept], self.category_ids[kept], self.boxes[kept], self.scores[kept])

    def as_dicts(self, own_ids: Mapping[int, int | str] | None = None) -> list[dict[str, Any]]:
        """The list that the JSON file holds.

        `own_ids`: the data set's own id for each of `image_ids`, where the two differ.
        """
        sides = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)
        rows = zip(
            self.image_ids.tolist(), self.category_ids.tolist(), sides.tolist(), self.scores.tolist(), strict=True
        )
        return [
            {"image_id": own_ids[image] if own_ids else image, "category_id": category, "bbox": bbox, "score": score}
            for image, category, bbox, score in rows
        ]


def concatenate_results(parts: list[Results]) -> Results:
    """Join several; without any the result is empty."""
    return Results(
        image_ids=np.concatenate([part.image_ids for part in parts] or [np.zeros(0, dtype=np.int64)]),
        category_ids=np.concatenate([part.category_ids for part in parts] or [np.zeros(0, dtype=np.int64)]),
        boxes=np.concatenate([part.boxes for part in parts] or [np.zeros((0, 4))]),
        scores=np.concatenate([part.scores for part in parts] or [np.zeros(0)]),
    )


def write_results(path: str | Path, results: Results, index: DetectionIndex | None = None) -> None:
    """Write a COCO results file, atomically.

    Args:
        path: the file.
        results: detections, whose `image_ids` are those of `index`.
        index: the images, whose own ids go into the file; None: the ids of `results`.
    """
    own_ids = None
    if index is not None and index.own_ids:
        own_ids = dict(zip(index.image_ids.tolist(), index.own_ids, strict=True))
    if index is not None and index.numbered:
        logger.warning(
            "%s: the images of %s have no ids of their own, or repeat them from split to split: they are numbered in the order of reading",
            path,
            index.root,
        )
    atomic_text(path, json.dumps(results.as_dicts(own_ids)))


def read_results(path: str | Path, index: DetectionIndex) -> Results:
    """Read a COCO results file about the images of `index`.

    Raises:
        DataError: not there, not JSON, not such a list, or about images or categories that the data set does not have.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a COCO results file") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); expected a list of detections") from None
    if not isinstance(entries, list):
        raise DataError(
            f"{path}: got a JSON {type(entries).__name__}, expected a list of detections "
            "{image_id, category_id, bbox, score}; is it an annotation file?"
        )
    known, categories = index.positions_of_ids(), frozenset(index.category_ids)
    rows = [_row(entry, f"{path}, entry {number}") for number, entry in enumerate(entries)]
    _check_known([row.image for row in rows], known, f"{path}: image_id", "images", len(index))
    _check_known([row.category for row in rows], categories, f"{path}: category_id", "categories", len(categories))
    table = np.array([row.numbers for row in rows], dtype=np.float64).reshape(-1, 5)
    return Results(
        image_ids=index.image_ids[np.array([known[row.image] for row in rows], dtype=np.int64)],
        category_ids=np.array([row.category for row in rows], dtype=np.int64),
        boxes=np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], axis=1),
        scores=table[:, 4],
    )


class _Row(NamedTuple):
    """One entry: its ids, unchanged, and x, y, width, height, score."""

    image: int | str
    category: int
    numbers: list[float]


def _row(entry: Any, where: str) -> _Row:
    try:
        image, category = as_id(entry["image_id"]), as_integer(entry["category_id"])
        x, y, width, height = (float(value) for value in entry["bbox"])
        numbers = [x, y, width, height, float(entry["score"])]
    except (KeyError, TypeError, ValueError):
        image = category = None
    if image is None or category is None:
        raise DataError(
            f"{where}: got {json.dumps(entry)[:120]}, expected image_id, category_id, bbox [x, y, w, h] and score"
        )
    if not np.isfinite(numbers).all():
        raise DataError(f"{where}: got a number that is not finite: {json.dumps(entry)[:120]}")
    return _Row(image, category, numbers)


def _check_known(found: Sequence[int | str], known: Collection[int | str], what: str, kind: str, number: int) -> None:
    strange = sorted({str(key) for key in found if key not in known})
    if strange:
        raise DataError(
            f"{what} {strange[0]} is not among the data set's {number} {kind} ({len(strange)} such); "
            "were these results made on another data set or split?"
        )
