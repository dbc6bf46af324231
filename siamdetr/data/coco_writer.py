"""Write labelled images as a COCO document; file names are relative to a given folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from siamdetr.data.index import DetectionIndex
from siamdetr.images.header import read_header


def coco_document(index: DetectionIndex, positions: Sequence[int], *, base: Path) -> dict[str, Any]:
    """Images, boxes and classes with the data set's own ids, crowds and difficult objects marked.

    Args:
        index: of the whole data set.
        positions: of the images that are written.
        base: the folder that file names are relative to.
    """
    annotations: list[dict[str, Any]] = []
    images = []
    for i in map(int, positions):
        images.append(_image(index, i, base))
        rows = index.box_slice(i)
        for row in range(rows.start, rows.stop):
            annotations.append(_annotation(index, row, len(annotations) + 1, index.own_id(i)))
    categories = [
        {"id": category, "name": name} for category, name in zip(index.category_ids, index.class_names, strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _image(index: DetectionIndex, i: int, base: Path) -> dict[str, Any]:
    height, width = (int(side) for side in index.sizes[i])
    if not height or not width:
        height, width = read_header(index.path(i)).size
    name = os.path.relpath(index.path(i).resolve(), base.resolve()).replace(os.sep, "/")
    return {"id": index.own_id(i), "file_name": name, "width": width, "height": height}


def _annotation(index: DetectionIndex, row: int, number: int, image: int | str) -> dict[str, Any]:
    x0, y0, x1, y1 = np.asarray(index.boxes[row], dtype=np.float64).round(3).tolist()
    entry: dict[str, Any] = {
        "id": number,
        "image_id": image,
        "category_id": index.category_ids[int(index.labels[row])],
        "bbox": [x0, y0, round(x1 - x0, 3), round(y1 - y0, 3)],
        "area": round(float(index.areas[row]), 3),
        "iscrowd": int(index.crowd[row]),
    }
    return entry | {"difficult": 1} if index.difficult[row] else entry
