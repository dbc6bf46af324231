"""Detections of images in the formats of other tools: YOLO's label files, a table, and COCO.

txt    labels/NAME.txt, a line a detection: label cx cy w h score, fractions of the image (as `save_txt` of YOLO tools)
csv    predictions.csv, a row a detection
coco   predictions.coco.json: images, categories and annotations, which bear `score`
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siamdetr.errors import OutputError
from siamdetr.system.atomic_file import atomic_bytes, atomic_text
from siamdetr.system.plain_text import csv_cell


@dataclass(frozen=True)
class PredictedImage:
    """The detections of one image.

    Attributes:
        file: the image, as it was named.
        stem: its name in the folder that is written, unique there.
        size: (height, width) of the upright image, pixels.
        rows: as of `inference.detection_rows`.
    """

    file: Path
    stem: str
    size: tuple[int, int]
    rows: Sequence[Mapping[str, Any]]


def write_txt(folder: Path, images: Sequence[PredictedImage], categories: Mapping[int, str]) -> Path:
    """One label file per image, empty without detections; `classes.txt` names the labels."""
    for image in images:
        lines = []
        for row in image.rows:
            x0, y0, x1, y1 = row["box"]
            height, width = image.size
            box = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height
            lines.append(" ".join([str(row["label"]), *(f"{value:.6f}" for value in box), f"{row['score']:.5f}"]))
        atomic_text(folder / "labels" / f"{image.stem}.txt", "".join(f"{line}\n" for line in lines))
    names = "".join(f"{' '.join(name.splitlines())}\n" for name in categories.values())
    atomic_text(folder / "labels" / "classes.txt", names)
    return folder / "labels"


def write_csv(folder: Path, images: Sequence[PredictedImage], categories: Mapping[int, str]) -> Path:
    """One row per detection: image, class, label, score, and the box in pixels."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "class", "label", "score", "x0", "y0", "x1", "y1"])
    for image in images:
        for row in image.rows:
            cells = [str(image.file), row["name"], row["label"], row["score"], *row["box"]]
            writer.writerow([csv_cell(cell) for cell in cells])
    path = folder / "predictions.csv"
    atomic_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))
    return path


def write_coco(folder: Path, images: Sequence[PredictedImage], categories: Mapping[int, str]) -> Path:
    """One document with images numbered from 1 and the data set's own category ids."""
    ids = list(categories)
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        for row in image.rows:
            x0, y0, x1, y1 = row["box"]
            box = [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": ids[row["label"]], "bbox": box}
            annotations.append({**entry, "area": box[2] * box[3], "iscrowd": 0, "score": row["score"]})
    document = {
        "images": [
            {"id": number, "file_name": str(image.file), "height": image.size[0], "width": image.size[1]}
            for number, image in enumerate(images, start=1)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }
    path = folder / "predictions.coco.json"
    atomic_text(path, json.dumps(document))
    return path


FORMATS: Mapping[str, Callable[[Path, Sequence[PredictedImage], Mapping[int, str]], Path]] = {
    "txt": write_txt,
    "csv": write_csv,
    "coco": write_coco,
}


def outputs_of(formats: Sequence[str], folder: Path, stems: Sequence[str]) -> list[Path]:
    """The files that the formats will write.

    Raises:
        OutputError: an unknown format.
    """
    found: list[Path] = []
    for name in formats:
        if name not in FORMATS:
            raise OutputError(f"--save {name}: unknown format, expected {', '.join(FORMATS)}")
        if name == "txt":
            found += [folder / "labels" / f"{stem}.txt" for stem in (*stems, "classes")]
        else:
            found.append(folder / ("predictions.csv" if name == "csv" else "predictions.coco.json"))
    return found
