"""Texts of the manifest for people who write a client in another language.

They say how images are prepared and how detections are read.

Each entry is a rule that needs no other document; a test writes a client from these entries alone.
"""

from __future__ import annotations

from typing import Any

from siamdetr.images.preprocessing import PreprocessingSpec

_ROUNDING = {
    "shortest-edge": (
        "short = min(height, width), long = max(height, width); S = size; if max_size is not null and long / short * size > "
        "max_size: S = max(1, round(max_size * short / long)), halves to the even number; the shorter side becomes S, the longer "
        "one max(1, floor(S * long / short)); where both sides are equal, both become S and floor(S)"
    ),
    "fixed": "every image becomes size = [height, width], whatever its shape",
    "letterbox": (
        "scale = min(size[0] / height, size[1] / width); new height = max(1, round(height * scale)), new width = max(1, "
        "round(width * scale)), halves to the even number"
    ),
}


def describe_preparation(spec: PreprocessingSpec) -> dict[str, Any]:
    """The way from an image file to the input `images`, in the order of the steps."""
    padded = spec.mode == "letterbox"
    return {
        "1_upright": "turn and mirror the decoded picture as its EXIF orientation says, before anything else",
        "2_colour": "8-bit RGB in this order; grey is repeated three times, transparency is dropped without blending; of deeper "
        "pixels the upper 8 of n bits are kept, n = the smallest of 8, 10, 12, 14 and 16 that holds the picture's largest value",
        "3_size": _ROUNDING[spec.mode],
        "4_filter": {
            "name": "bilinear with averaging (Pillow's Image.resize with BILINEAR; PyTorch's interpolate with antialias=True)",
            "kernel": "triangle of radius max(1, old / new) source pixels around the centre (i + 0.5) * old / new, weights "
            "normalised to sum 1 and cut off at the border",
            "passes": "first along rows (width), then along columns (height); after each pass rounded to 8 bits, halves up",
            "skipped": "where the size is already the wanted one",
        },
        "5_padding": (
            {
                "where": "right and below, up to size",
                "value": 0,
                "input": "valid_sizes = [height, width] without padding",
            }
            if padded
            else None
        ),
        "6_normalisation": {
            "where": "in the graph: give uint8 values 0..255",
            "formula": "(value / 255 - mean) / std for each channel",
            "mean": list(spec.mean),
            "std": list(spec.std),
        },
        "7_layout": "[batch, channel, height, width], uint8; all images of a batch have one size",
        "original_sizes": "[height, width] of the upright picture before resizing, int64",
    }


def describe_detections(num_boxes: int | None, threshold: float) -> dict[str, Any]:
    """The way from the outputs to detections."""
    return {
        "k": num_boxes,
        "order": "none is promised; sort by falling score",
        "threshold": threshold,
        "keep": "boxes whose score is at least the threshold; no non-maximum suppression is needed",
        "boxes": "x0, y0, x1, y1 in pixels of the upright picture; they may reach outside it: clip x to 0..width, y to 0..height",
        "labels": "index into class_names",
        "not_numbers": "a NaN or infinite score or box is a fault of the model or runtime, not an empty answer",
    }
