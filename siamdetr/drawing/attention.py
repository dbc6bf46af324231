"""Attention figures at print quality, as `siamdetr attention` draws them.

A heat map is an attention map resized to the image with a cubic filter, drawn over the darkened image.
White dots are sampling points of deformable attention, their area showing the weight; a cross is the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from siamdetr.drawing.boxes import PALETTE
from siamdetr.inference.attention_maps import AttentionMaps, Floats, Inspection

_INK = "#1f2937"
_DIM = 0.45  # how bright the image stays under a heat map
_HEAT_SIDE = 900  # pixels: the longer side of a heat map is at least half of this
_SHOWN_SIDE = (
    1800  # pixels, the longer side at most: print shows no more, and a photo of 12 megapixels would take minutes
)
_LEAST_PEAK = 3.0  # times 1 / cells
Size = tuple[int, int]  # (width, height), pixels
_OUTLINE = [patheffects.withStroke(linewidth=1.6, foreground="black")]


@dataclass(frozen=True)
class FigureOptions:
    """The options of an attention figure.

    Attributes:
        boxes: number of detections, best first.
        layer: 1..L, or None: the mean of all.
        heads: one row per head, instead of their mean.
        point: (x, y) fractions of the image: the encoder's self-attention of that point, instead of the decoder's of
            boxes.
        width: of the figure, inches.
    """

    boxes: int = 3
    layer: int | None = None
    heads: bool = False
    point: tuple[float, float] | None = None
    width: float = 7.0


def attention_figure(image: Image.Image, seen: Inspection, class_names: Sequence[str], wanted: FigureOptions) -> Figure:
    """Draw the image with its boxes, then one panel with the attention of each box, or of a point.

    Args:
        image: the upright RGB image that was inspected.
        seen: its inspection.
        class_names: in label order.
        wanted: what to show.
    Raises:
        ValueError: there is no such layer, or the model records no such attention.
    """
    boxes = best_boxes(seen, wanted.boxes)
    point = wanted.point
    attentions = [seen.decoder_attention(box) for box in boxes] if point is None else [seen.encoder_attention(*point)]
    num_heads = attentions[0].maps.shape[1]
    rows: list[int | None] = list(range(num_heads)) if wanted.heads else [None]
    height = wanted.width / (1 + len(attentions)) * image.height / image.width
    figure = Figure(
        figsize=(wanted.width, len(rows) * (height + 0.18)),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01),
    )
    axes = figure.subplots(len(rows), 1 + len(attentions), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    shown = image.copy()
    shown.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    _show(axes[0, 0], shown, image.size, "boxes" if wanted.point is None else "point")
    dim = Image.fromarray((np.asarray(shown) * _DIM).astype(np.uint8))
    for column, attention in enumerate(attentions):
        for row, head in enumerate(rows):
            title = "" if wanted.point is not None or row else _caption(seen, boxes[column], class_names)
            title += f"  head {head + 1}" if head is not None else ""
            axis = axes[row, column + 1]
            _show(axis, dim, image.size, title.strip())
            _attention(axis, dim.size, image.size, attention, layer=wanted.layer, head=head)
    if wanted.point is None:
        for column, box in enumerate(boxes):
            targets = [axes[0, 0], *axes[:, column + 1]]
            _outline(targets, seen, box)
    else:
        for axis in axes[:, :].flat:
            axis.plot(*_pixels(np.array(wanted.point), image.size), "+", color="white", ms=7, path_effects=_OUTLINE)
    return figure


def best_boxes(seen: Inspection, count: int) -> list[int]:
    """Numbers of the boxes with the highest scores, best first.

    One query with several classes counts once.
    """
    chosen: list[int] = []
    boxes = seen.scored.boxes[0]
    for box in np.argsort(-seen.scored.scores[0], kind="stable"):
        if len(chosen) == count:
            break
        if not any(np.array_equal(boxes[box], boxes[other]) for other in chosen):
            chosen.append(int(box))
    return chosen


def chosen_map(attention: AttentionMaps, *, layer: int | None, head: int | None) -> Floats:
    """[h, w] map of one layer (1..L) or the mean of all, and of one head (0..M-1) or the mean of all.

    Raises:
        ValueError: there is no such layer.
    """
    check_layer(attention, layer)
    layers = attention.maps if layer is None else attention.maps[layer - 1 : layer]
    heads = layers if head is None else layers[:, head : head + 1]
    mean: Floats = heads.mean((0, 1))
    return mean


def check_layer(attention: AttentionMaps, layer: int | None) -> None:
    """Check that `layer` is one of 1..L, or None; raises ValueError."""
    count = len(attention.maps)
    if layer is not None and not 1 <= layer <= count:
        raise ValueError(f"layer: got {layer}, expected 1 to {count}; leave it out for the mean of all layers")


def full_scale(values: Floats) -> float:
    """The value of a map [h, w] that is drawn as 1; see `heat`."""
    return max(float(values.max()), _LEAST_PEAK / values.size)


def heat(values: Floats, size: tuple[int, int]) -> Floats:
    """A map [h, w] as a heat map [H, W] in [0, 1] of the image's (width, height).

    1 is the peak, or three times the uniform attention of a cell if the peak is lower:
    so an attention without a focus stays dark.
    """
    large = Image.fromarray(values / full_scale(values)).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(large).clip(0, 1)


def _attention(
    axis: Axes, shown: Size, size: Size, attention: AttentionMaps, *, layer: int | None, head: int | None
) -> None:
    """Draw heat, points and reference over the picture.

    `shown`: its size as drawn, `size`: that of the image.
    """
    scale = max(1, round(_HEAT_SIDE / max(shown)))
    values = heat(chosen_map(attention, layer=layer, head=head), (shown[0] * scale, shown[1] * scale))
    colours = colormaps["inferno"](values)
    colours[..., 3] = np.sqrt(values) * 0.85
    axis.imshow(colours, extent=(0, size[0], size[1], 0), interpolation="none")
    if attention.points is not None and attention.weights is not None:
        layers = slice(None) if layer is None else slice(layer - 1, layer)
        heads = slice(None) if head is None else slice(head, head + 1)
        points = _pixels(attention.points[layers, heads].reshape(-1, 2), size)
        weights = attention.weights[layers, heads].reshape(-1)
        axis.scatter(points[:, 0], points[:, 1], s=5 * weights / weights.max(), c="white", alpha=0.75, linewidths=0)
    if attention.references is not None:
        reference = attention.references[-1 if layer is None else layer - 1, :2]
        axis.plot(*_pixels(reference, size), "+", color="#7dd3fc", ms=6, mew=1.2, path_effects=_OUTLINE)
    axis.set_xlim(0, size[0])
    axis.set_ylim(size[1], 0)


def _show(axis: Axes, image: Image.Image, size: Size, title: str) -> None:
    axis.imshow(
        np.asarray(image),
        extent=(0, size[0], size[1], 0),
        interpolation="bicubic" if min(image.size) < _HEAT_SIDE / 2 else "antialiased",
    )
    axis.set_title(title, fontsize=7, color=_INK, pad=3, parse_math=False)  # a class may be called "5$ or 10$"


def _caption(seen: Inspection, box: int, class_names: Sequence[str]) -> str:
    return f"{class_names[seen.scored.labels[0, box]]}  {seen.scored.scores[0, box]:.2f}"


def _outline(axes: Sequence[Axes], seen: Inspection, box: int) -> None:
    left, top, right, bottom = (float(value) for value in seen.scored.boxes[0, box])
    colour = PALETTE.by_idx(int(seen.scored.labels[0, box])).as_hex()
    for axis in axes:
        frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.4)
        frame.set_path_effects([patheffects.withStroke(linewidth=2.4, foreground="white", alpha=0.8)])
        axis.add_patch(frame)


def _pixels(fractions: NDArray[np.float64] | Floats, size: tuple[int, int]) -> NDArray[np.float64]:
    """Fractions (x, y) as pixels of an image of (width, height)."""
    return np.asarray(fractions * np.array(size, dtype=np.float64))
