"""Pictures of boxes: detections, or targets and detections side by side."""

from __future__ import annotations

import numpy as np
import supervision as sv
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from siamdetr.data.index import DetectionIndex
from siamdetr.images.preprocessing import ImageLike, load_image

# Dark enough for white letters; neighbours in label order differ in hue.
PALETTE = sv.ColorPalette.from_hex(
    ["#c2185b", "#1565c0", "#2e7d32", "#b45309", "#6a1b9a", "#00796b", "#c62828", "#4527a0", "#5d6d00", "#0277bd"]
)
_LEAST_SIDE = 480  # pixels; smaller pictures are enlarged before drawing, so that text stays legible
_ENLARGED_SIDE = 4096  # pixels, the longer side: pictures are not enlarged past it
_MOST_SIDE = 16_384  # pixels: two pictures side by side are within JPEG's 65,500
_DASH = 6  # pixels


def draw(image: ImageLike, detections: sv.Detections, *, least_side: int = _LEAST_SIDE) -> Image.Image:
    """Draw boxes and labels over a picture.

    Args:
        image: PIL image, uint8 RGB array or path; not changed.
        detections: in pixels of `image`; `class_id` chooses the colour, `data["class_name"]` and `confidence` the text.
        least_side: pictures whose shorter side is about half of it or less are enlarged by a whole factor, so that
            lines and letters are crisp, as far as the longer side stays within 4096 pixels. Pictures are drawn at most
            16,384 pixels a side.
    """
    picture, factor = _canvas(load_image(image), least_side)
    if len(detections) == 0:
        return picture
    scaled = sv.Detections(
        xyxy=np.asarray(detections.xyxy, dtype=np.float32) * factor,
        confidence=detections.confidence,
        class_id=np.zeros(len(detections), dtype=int) if detections.class_id is None else detections.class_id,
        data=dict(detections.data),
    )
    side = min(picture.size)
    font_size, margin = max(12, round(side / 38)), max(3, round(side / 160))
    texts = _texts(scaled)
    boxes = sv.BoxAnnotator(color=PALETTE, thickness=max(2, round(side / 270)))
    labels = sv.RichLabelAnnotator(color=PALETTE, font_size=font_size, text_padding=margin)
    drawn: Image.Image = boxes.annotate(picture, scaled)
    scaled.xyxy = _label_anchors(
        np.asarray(scaled.xyxy, dtype=np.float32), texts, drawn.size, font_size=font_size, margin=margin
    )
    labelled: Image.Image = labels.annotate(drawn, scaled, labels=texts)
    return labelled


def _canvas(image: Image.Image, least_side: int) -> tuple[Image.Image, float]:
    """A copy to draw on, and its scale relative to the image.

    A strip is not enlarged beyond `_ENLARGED_SIDE`, and a picture too large for JPEG is reduced.
    """
    longest = max(image.size)
    factor: float = max(1, min(round(least_side / min(image.size)), _ENLARGED_SIDE // longest))
    if longest > _MOST_SIDE:
        factor = _MOST_SIDE / longest
    if factor == 1:
        return image.copy(), factor
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC), factor


def _label_anchors(
    boxes: NDArray[np.float32], texts: list[str], size: tuple[int, int], *, font_size: int, margin: int
) -> NDArray[np.float32]:
    """[n, 4] boxes whose upper left corner is moved so that a label above it lies inside the picture."""
    font = ImageFont.load_default(font_size)
    widths = np.array([font.getlength(text) + 2 * margin + 1 for text in texts], dtype=np.float32)
    moved = boxes.copy()
    moved[:, 0] = np.minimum(moved[:, 0], size[0] - widths).clip(min=0)
    moved[:, 1] = moved[:, 1].clip(min=font_size + 2 * margin)
    return moved


def draw_side_by_side(
    image: ImageLike,
    truth: sv.Detections,
    found: sv.Detections,
    *,
    captions: tuple[str, str] = ("truth", "prediction"),
    least_side: int = _LEAST_SIDE,
) -> Image.Image:
    """Draw targets on the left and detections on the right, each with a caption."""
    panels = [draw(image, detections, least_side=least_side) for detections in (truth, found)]
    width, height = panels[0].size
    font_size = max(13, round(min(width, height) / 32))
    font = ImageFont.load_default(font_size)
    band, gap = round(font_size * 1.8), max(6, width // 80)
    canvas = Image.new("RGB", (2 * width + gap, height + band), "white")
    pen = ImageDraw.Draw(canvas)
    for i, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        left = i * (width + gap)
        canvas.paste(panel, (left, band))
        pen.text((left + 2, band / 2), caption, fill="#333333", font=font, anchor="lm")
    return canvas


def dashed_rectangle(
    pen: ImageDraw.ImageDraw,
    box: tuple[float, float, float, float],
    colour: str | tuple[int, int, int],
    *,
    width: int = 2,
) -> None:
    """Draw the outline of an (x0, y0, x1, y1) box in pixels as dashes."""
    x0, y0, x1, y1 = box
    for start in np.arange(x0, x1, 2 * _DASH):
        for y in (y0, y1):
            pen.line((start, y, min(start + _DASH, x1), y), fill=colour, width=width)
    for start in np.arange(y0, y1, 2 * _DASH):
        for x in (x0, x1):
            pen.line((x, start, x, min(start + _DASH, y1)), fill=colour, width=width)


def truth_of(index: DetectionIndex, i: int) -> sv.Detections:
    """The annotated boxes of image `i`, crowds left out, in the form that `draw` takes."""
    kept = ~index.crowd[index.box_slice(i)]
    labels = index.labels_of(i)[kept].astype(int)
    return sv.Detections(
        xyxy=index.boxes_of(i)[kept],
        class_id=labels,
        data={"class_name": np.array([index.class_names[label] for label in labels], dtype=str)},
    )


def _texts(detections: sv.Detections) -> list[str]:
    names = detections.data.get("class_name", [""] * len(detections))
    scores = detections.confidence
    return [f"{name} {scores[i]:.2f}".strip() if scores is not None else str(name) for i, name in enumerate(names)]
