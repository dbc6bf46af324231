"""Pictures of single mistakes.

The part of the image around them, the truth dashed, the detection solid.
"""

from __future__ import annotations

from PIL import ImageDraw

from siamdetr.data.index import DetectionIndex
from siamdetr.drawing.boxes import dashed_rectangle
from siamdetr.drawing.crops import Crop, crop_around, jpeg
from siamdetr.evaluation.mistakes import Corners, Mistake, corners_of
from siamdetr.images.preprocessing import load_image

_TRUTH, _FOUND = "#2ecc71", "#e4572e"


def picture_of(mistake: Mistake, index: DetectionIndex) -> bytes:
    """The mistake as a JPEG of about 320 pixels a side.

    Raises:
        UnreadableImageError: the image cannot be opened.
    """
    truth = None if mistake.truth is None else corners_of(index.boxes[mistake.truth])
    crop = crop_around(load_image(index.path(mistake.image)), [mistake.box] if truth is None else [mistake.box, truth])
    draw_boxes(crop, truth=truth, found=None if mistake.kind == "missed" else mistake.box)
    return jpeg(crop.picture)


def draw_boxes(crop: Crop, *, truth: Corners | None, found: Corners | None) -> None:
    """Draw the true box dashed and the detection solid into the picture of a crop."""
    pen = ImageDraw.Draw(crop.picture)
    if truth is not None:
        dashed_rectangle(pen, crop.place(truth), _TRUTH, width=3)
    if found is not None:
        pen.rectangle(crop.place(found), outline=_FOUND, width=3)


def caption_of(mistake: Mistake, index: DetectionIndex) -> str:
    """The caption of the picture, in one line."""
    name = index.class_names[mistake.label]
    where = f"image {index.image_ids[mistake.image]}"
    if mistake.kind == "missed":
        return f"missed {name} · {where}"
    text = f"{mistake.kind}: {name} {mistake.score:.2f}"
    if mistake.kind == "wrong class" and mistake.truth is not None:
        text += f", truth {index.class_names[int(index.labels[mistake.truth])]}"
    if mistake.kind in ("poor box", "duplicate"):
        text += f", IoU {mistake.overlap:.2f}"
    return f"{text} · {where}"
