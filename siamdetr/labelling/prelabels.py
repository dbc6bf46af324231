"""Pre-labels: a model's detections in unlabelled images, to be written for a labelling tool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import supervision as sv
from numpy.typing import NDArray

from siamdetr.evaluation.classes import OBJECT
from siamdetr.inference.opened_model import Facts
from siamdetr.inference.predict_files import Failed, Found, predict_files
from siamdetr.inference.predictor import Predictor
from siamdetr.labelling.bands import Band, Bands
from siamdetr.system.progress import Progress
from siamdetr.system.unique_names import unique_stems


@dataclass(frozen=True)
class Classes:
    """The classes of a data set: names and the data set's own ids, both in label order."""

    names: tuple[str, ...]
    ids: tuple[int, ...]


def classes_of(model: Facts, *, objects: bool = False) -> Classes:
    """The classes of a model; the data set's own ids where it knows them, else 1..C.

    With `objects` the one class "object".
    """
    if objects:
        return Classes((OBJECT,), (1,))
    return Classes(model.class_names, model.category_ids or tuple(range(1, len(model.class_names) + 1)))


@dataclass(frozen=True)
class Prelabel:
    """One image and its boxes, if any.

    Attributes:
        source: the image file.
        name: its file name in the output folder, unique there.
        size: (height, width) in pixels, upright.
        boxes: [N, 4] float32 (x0, y0, x1, y1) pixels, best first.
        labels: [N] int64.
        scores: [N] float32.
        bands: N.
    """

    source: Path
    name: str
    size: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    bands: tuple[Band, ...]


def prelabel(
    model: Predictor,
    files: Sequence[Path],
    bands: Bands,
    *,
    batch_size: int = 8,
    objects: bool = False,
    progress: Progress | None = None,
) -> Iterator[Prelabel | Failed]:
    """Detect objects in images; one result per file, in the given order.

    An image that cannot be used does not stop the others.

    Args:
        model: any opened model.
        files: images.
        bands: boxes below `look` are left out.
        batch_size: images at a time.
        objects: give all boxes the one class of `classes_of(model, objects=True)`.
        progress: called with (images done, images in all).
    """
    names = _unique_names(files)
    found = predict_files(model, files, threshold=bands.look, batch_size=batch_size)
    for done, one in enumerate(found, start=1):
        if isinstance(one, Found):
            size = (one.image.height, one.image.width)
            yield _labelled(one.file, names[one.file], size, one.detections, bands, objects)
        else:
            yield one
        if progress is not None:
            progress(done, len(files))


def _labelled(
    file: Path, name: str, size: tuple[int, int], found: sv.Detections, bands: Bands, objects: bool
) -> Prelabel:
    assert found.confidence is not None
    assert found.class_id is not None
    return Prelabel(
        source=file,
        name=name,
        size=size,
        boxes=found.xyxy.astype(np.float32),
        labels=found.class_id.astype(np.int64) * (not objects),
        scores=found.confidence.astype(np.float32),
        bands=tuple(bands.of(found.confidence)),
    )


def _unique_names(files: Sequence[Path]) -> dict[Path, str]:
    """A file name for each image whose stem is unique, because a label file has the stem of its image."""
    stems = unique_stems([file.stem for file in files])
    return {file: f"{stem}{file.suffix}" for file, stem in zip(files, stems, strict=True)}
