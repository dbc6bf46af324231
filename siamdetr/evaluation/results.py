"""Detections in COCO's results format.

A JSON list of {image_id, category_id, bbox [x, y, w, h], score}.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import DataError
from siamdetr.system.atomic_file import atomic_text


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

    def as_dicts(self) -> list[dict[str, Any]]:
        """The list that the JSON file holds."""
        sides = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)
        rows = zip(
            self.image_ids.tolist(), self.category_ids.tolist(), sides.tolist(), self.scores.tolist(), strict=True
        )
        return [
            {"image_id": image, "category_id": category, "bbox": bbox, "score": score}
            for image, category, bbox, score in rows
        ]


def concatenate_results(parts: list[Results]) -> Results:
    """One of several; none gives an empty one."""
    return Results(
        image_ids=np.concatenate([part.image_ids for part in parts] or [np.zeros(0, dtype=np.int64)]),
        category_ids=np.concatenate([part.category_ids for part in parts] or [np.zeros(0, dtype=np.int64)]),
        boxes=np.concatenate([part.boxes for part in parts] or [np.zeros((0, 4))]),
        scores=np.concatenate([part.scores for part in parts] or [np.zeros(0)]),
    )


def write_results(path: str | Path, results: Results) -> None:
    """Write a COCO results file, atomically."""
    atomic_text(path, json.dumps(results.as_dicts()))


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
    rows = [_row(entry, f"{path}, entry {number}") for number, entry in enumerate(entries)]
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    corners = np.concatenate([table[:, 2:4], table[:, 2:4] + table[:, 4:6]], axis=1)
    results = Results(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), corners, table[:, 6])
    _check_known(results.image_ids, index.image_ids, f"{path}: image_id", "images")
    _check_known(results.category_ids, np.array(index.category_ids), f"{path}: category_id", "categories")
    return results


def _row(entry: Any, where: str) -> list[float]:
    try:
        x, y, width, height = (float(value) for value in entry["bbox"])
        row = [int(entry["image_id"]), int(entry["category_id"]), x, y, width, height, float(entry["score"])]
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{where}: got {json.dumps(entry)[:120]}, expected image_id, category_id, bbox [x, y, w, h] and score"
        ) from None
    if not np.isfinite(row).all():
        raise DataError(f"{where}: got a number that is not finite: {json.dumps(entry)[:120]}")
    return row


def _check_known(found: NDArray[np.int64], known: NDArray[np.int64], what: str, kind: str) -> None:
    strange = np.setdiff1d(found, known)
    if len(strange):
        raise DataError(
            f"{what} {int(strange[0])} is not among the data set's {len(known)} {kind} ({len(strange)} such); "
            "were these results made on another data set or split?"
        )
