"""The output folder of `siamdetr label`: images, label files, and a table of the images."""

from __future__ import annotations

import csv
import io
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from siamdetr.errors import DataError
from siamdetr.labelling.formats import IMAGES, WRITERS
from siamdetr.labelling.prelabels import Classes, Prelabel
from siamdetr.system.atomic_file import atomic_bytes
from siamdetr.system.outputs import check_empty
from siamdetr.system.plain_text import csv_cell

TABLE = "prelabels.csv"
# Where each format expects its images.
_IMAGE_FOLDERS = {"coco": f"{IMAGES}/train", "voc": "JPEGImages"}


def check_format(name: str) -> str:
    """Check the name of a format; returns it.

    Raises:
        DataError: there is no such format.
    """
    if name not in WRITERS:
        raise DataError(f"--to: got '{name}', expected one of {', '.join(WRITERS)}")
    return name


def write_prelabels(folder: Path, prelabels: Sequence[Prelabel], classes: Classes, *, to: str) -> Path:
    """Copy the images, write the label files and the table; returns the main label file.

    Args:
        folder: new or empty.
        prelabels: one an image.
        classes: of the model, with the data set's own ids.
        to: a name of `WRITERS`.
    """
    check_empty(folder)
    images = folder / _IMAGE_FOLDERS.get(to, IMAGES)
    images.mkdir(parents=True, exist_ok=True)
    for one in prelabels:
        shutil.copyfile(one.source, images / one.name)
    main = WRITERS[check_format(to)](folder, prelabels, classes)
    _write_table(folder / TABLE, prelabels)
    return main


def count_bands(prelabels: Sequence[Prelabel]) -> Counter[str]:
    """Boxes by band, and images by the band of their least sure box; "empty": without boxes."""
    counts: Counter[str] = Counter()
    for one in prelabels:
        counts.update(f"{band} boxes" for band in one.bands)
        counts[f"{image_band(one)} images"] += 1
    return counts


def image_band(one: Prelabel) -> str:
    """ "sure" if all boxes are, "look" if one is not, "empty" if there are none."""
    return "empty" if not one.bands else "look" if "look" in one.bands else "sure"


def _write_table(path: Path, prelabels: Sequence[Prelabel]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "source", "band", "boxes", "sure", "look", "least score"])
    for one in prelabels:
        least = f"{one.scores.min():.4f}" if len(one.scores) else ""
        sure = one.bands.count("sure")
        cells = [one.name, str(one.source), image_band(one), len(one.bands), sure, len(one.bands) - sure, least]
        writer.writerow(map(csv_cell, cells))
    atomic_bytes(path, text.getvalue().encode())
