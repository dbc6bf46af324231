"""A few pictures for the report: the truth beside what the best weights find."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from siamdetr.checkpoint import load_model
from siamdetr.data.index import DetectionIndex
from siamdetr.evaluation.drawing import draw_side_by_side, truth_of
from siamdetr.evaluation.predictor import predict
from siamdetr.evaluation.pytorch import PyTorchPredictor
from siamdetr.preprocessing import load_image
from siamdetr.report import PICTURES

_WIDTH = 900  # pixels of a pair: the report carries the pictures inside


def save_pictures(run_folder: Path, index: DetectionIndex, *, count: int = 6, threshold: float = 0.4) -> None:
    """Write truth and prediction of `count` images, spread evenly over the data set, as jpg files into the run folder."""
    detector, metadata = load_model(run_folder)
    predictor = PyTorchPredictor(detector, metadata.class_names, metadata.preprocessing)
    chosen = np.unique(np.linspace(0, len(index) - 1, num=min(count, len(index))).round().astype(int)).tolist()
    folder = run_folder / PICTURES
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for i in chosen:
        image = load_image(index.path(i))
        found = predict(predictor, [image], threshold=threshold)
        assert isinstance(found, list)
        pair = draw_side_by_side(image, truth_of(index, i), found[0])
        pair.thumbnail((_WIDTH, _WIDTH))
        pair.convert("RGB").save(folder / f"image {index.image_ids[i]}.jpg", quality=85)
