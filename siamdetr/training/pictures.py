"""Pictures for the report: targets beside detections of the best weights, and their attention."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np

from siamdetr.data.index import DetectionIndex
from siamdetr.drawing.attention import FigureOptions, attention_figure
from siamdetr.drawing.boxes import draw_side_by_side, truth_of
from siamdetr.files import ATTENTION, PICTURES
from siamdetr.images.preprocessing import load_image
from siamdetr.inference.detector_attention import inspect
from siamdetr.inference.predictor import predict
from siamdetr.inference.pytorch import PyTorchPredictor
from siamdetr.model_file import load_model
from siamdetr.system.atomic_file import atomic_bytes

_WIDTH = 900  # pixels of a pair: the report carries the pictures inside
_DPI = 160


def save_pictures(run_folder: Path, index: DetectionIndex, *, count: int = 6, threshold: float = 0.4) -> None:
    """Write targets and detections of `count` images, spread evenly over the data set, as jpg files.

    For every other image also the attention of its best boxes.
    """
    detector, metadata = load_model(run_folder)
    predictor = PyTorchPredictor(detector, metadata.class_names, metadata.preprocessing)
    chosen = np.unique(np.linspace(0, len(index) - 1, num=min(count, len(index))).round().astype(int)).tolist()
    for name in (PICTURES, ATTENTION):
        shutil.rmtree(run_folder / name, ignore_errors=True)
        (run_folder / name).mkdir()
    for number, i in enumerate(chosen):
        image, file_name = load_image(index.path(i)), f"image {index.image_ids[i]}.jpg"
        found = predict(predictor, [image], threshold=threshold)
        assert isinstance(found, list)
        pair = draw_side_by_side(image, truth_of(index, i), found[0])
        pair.thumbnail((_WIDTH, _WIDTH))
        content = io.BytesIO()
        pair.convert("RGB").save(content, "JPEG", quality=85)
        atomic_bytes(run_folder / PICTURES / file_name, content.getvalue())
        if number % 2 == 0:
            figure = attention_figure(image, inspect(predictor, image), metadata.class_names, FigureOptions())
            drawn = io.BytesIO()
            figure.savefig(drawn, format="jpg", dpi=_DPI, facecolor="white")
            atomic_bytes(run_folder / ATTENTION / file_name, drawn.getvalue())
