"""Pictures of single mistakes.

The part of the image around them, the truth dashed, the detection solid.
"""

from __future__ import annotations

import io

from PIL import Image, ImageDraw

from siamdetr.data.index import DetectionIndex
from siamdetr.drawing.boxes import dashed_rectangle
from siamdetr.evaluation.mistakes import Corners, Mistake, corners_of
from siamdetr.images.preprocessing import load_image

_SIDE = 320  # pixels of a picture
_MARGIN = 0.6  # of the box's longer side, on each side of it
_LEAST_MARGIN = 24  # pixels of the image
_TRUTH, _FOUND = "#2ecc71", "#e4572e"


def picture_of(mistake: Mistake, index: DetectionIndex) -> bytes:
    """The mistake as a JPEG of about 320 pixels a side.

    Raises:
        UnreadableImageError: the image cannot be opened.
    """
    image = load_image(index.path(mistake.image))
    truth = None if mistake.truth is None else corners_of(index.boxes[mistake.truth])
    window = _window([mistake.box] if truth is None else [mistake.box, truth], image.size)
    scale = _SIDE / max(window[2] - window[0], window[3] - window[1])
    size = (max(1, round((window[2] - window[0]) * scale)), max(1, round((window[3] - window[1]) * scale)))
    part = image.resize(size, Image.Resampling.BICUBIC, box=window)
    pen = ImageDraw.Draw(part)
    if truth is not None:
        dashed_rectangle(pen, _placed(truth, window, scale), _TRUTH, width=3)
    if mistake.kind != "missed":
        pen.rectangle(_placed(mistake.box, window, scale), outline=_FOUND, width=3)
    file = io.BytesIO()
    part.save(file, "JPEG", quality=85)
    return file.getvalue()


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


def _window(boxes: list[Corners], size: tuple[int, int]) -> Corners:
    """The part of the image that is shown, in pixels: the boxes and what is around them."""
    x0, y0 = min(box[0] for box in boxes), min(box[1] for box in boxes)
    x1, y1 = max(box[2] for box in boxes), max(box[3] for box in boxes)
    margin = max(_LEAST_MARGIN, _MARGIN * max(x1 - x0, y1 - y0))
    width, height = size
    left, top = min(max(0.0, x0 - margin), width - 1.0), min(max(0.0, y0 - margin), height - 1.0)
    return left, top, max(left + 1, min(float(width), x1 + margin)), max(top + 1, min(float(height), y1 + margin))


def _placed(box: Corners, window: Corners, scale: float) -> Corners:
    left, top = window[:2]
    x0, y0, x1, y1 = (box[0] - left) * scale, (box[1] - top) * scale, (box[2] - left) * scale, (box[3] - top) * scale
    return x0, y0, max(x0, x1), max(y0, y1)
