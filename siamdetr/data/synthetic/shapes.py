"""A drawn detection data set in COCO layout: textured shapes on varied backgrounds, made from a seed.

Each image holds one to three shapes of 25 to 60 % of its side, rotated, stretched, shaded and partly overlapping, among
lines, blobs and small distractors. An image is a function of (seed, part, number), so that more images do not change
the earlier ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from siamdetr.data.synthetic.paint import background, clutter, finish, paint, palette, texture
from siamdetr.images.randomness import Random
from siamdetr.system.atomic_file import atomic_text, atomic_write
from siamdetr.system.progress import Progress
from siamdetr.system.threads import usable_cores

SHAPES = ("disc", "square", "triangle", "star", "ring", "cross")
NUM_OBJECTS = (1, 3)
SIDE = (0.25, 0.6)  # of the image's side, before rotation
MOST_OVERLAP = 0.3  # of the smaller box
INSIDE = 0.9  # share of an object's box that lies in the image
_PARTS = {"unlabelled": 0, "train": 1, "val": 2}

Outline = NDArray[np.float64]  # [k, 2] corners (x, y)


@dataclass(frozen=True)
class DrawnObject:
    """One labelled shape: class name, clipped box xyxy in pixels, area in pixels² with hidden parts."""

    name: str
    box: tuple[float, float, float, float]
    area: float


def write_synthetic(
    folder: str | Path,
    *,
    seed: int = 0,
    num_unlabelled: int = 1000,
    num_train: int = 256,
    num_val: int = 200,
    size: int = 128,
    classes: Sequence[str] = SHAPES,
    progress: Progress | None = None,
) -> Path:
    """Draw a data set: `unlabelled/`, `train/`, `val/` and their COCO `annotations/`.

    Args:
        folder: created if needed; files of the same names are overwritten.
        seed: of all images.
        num_unlabelled: images without annotations.
        num_train: annotated images to train on.
        num_val: annotated images to score on.
        size: side of the square images, pixels, at least 32.
        classes: which of `SHAPES`, in the order of the category ids 1, 2, ...
        progress: called with (images done, images in all).
    Returns:
        The folder.
    Raises:
        ValueError: an unknown class, no class at all, or a size below 32.
    """
    unknown = [name for name in classes if name not in SHAPES]
    if unknown or not classes:
        raise ValueError(f"synthetic: got classes {list(classes)}, expected some of {', '.join(SHAPES)}")
    if size < 32:
        raise ValueError(f"synthetic: got size {size}, expected at least 32 pixels")
    root, counts = Path(folder), {"unlabelled": num_unlabelled, "train": num_train, "val": num_val}
    total, done = sum(counts.values()), 0
    for part, count in counts.items():
        (root / part).mkdir(parents=True, exist_ok=True)
        drawn: list[list[DrawnObject]] = []
        with ThreadPoolExecutor(min(4, usable_cores())) as pool:
            for objects in pool.map(
                lambda i, part=part: _write_image(root / part, i, (seed, _PARTS[part], i), size, classes), range(count)
            ):
                drawn.append(objects)
                done += 1
                if progress is not None:
                    progress(done, total)
        if part != "unlabelled":
            _write_annotations(root / "annotations" / f"instances_{part}.json", drawn, size, classes)
    return root


def draw_image(rng: Random, size: int, classes: Sequence[str] = SHAPES) -> tuple[NDArray[np.uint8], list[DrawnObject]]:
    """Draw one picture [size, size, 3] uint8 RGB.

    Returns it with its objects, of which later ones cover earlier ones.
    """
    colours = palette(rng)
    picture = background(rng, size, colours)
    clutter(picture, rng, colours)
    objects: list[DrawnObject] = []
    for _ in range(int(rng.integers(NUM_OBJECTS[0], NUM_OBJECTS[1] + 1))):
        placed = _place(rng, size, classes, objects)
        if placed is not None:
            name, outlines = placed
            area = paint(picture, outlines, texture(rng, colours), rng)
            objects.append(DrawnObject(name, _bounds(outlines, size), area))
    return finish(picture, rng), objects


def outlines_of(name: str) -> list[Outline]:
    """Corners of a shape around (0, 0) with radius 1; a ring has a second outline, its hole."""
    if name == "disc":
        return [_regular(48, 1.0)]
    if name == "ring":
        return [_regular(48, 1.0), _regular(48, 0.52)]
    if name == "square":
        return [_regular(4, 1.2)]
    if name == "triangle":
        return [_regular(3, 1.15)]
    if name == "star":
        radii = np.where(np.arange(10) % 2 == 0, 1.15, 0.48)[:, None]
        return [_regular(10, 1.0) * radii]
    arm = 0.36
    quarter = np.asarray([(arm, 1.05), (arm, arm), (1.05, arm)])
    corners = [quarter]
    for _ in range(3):
        corners.append(corners[-1] @ np.asarray([[0.0, -1.0], [1.0, 0.0]]))
    return [np.concatenate(corners)]


def _regular(corners: int, radius: float) -> Outline:
    angles = 2 * math.pi * np.arange(corners) / corners
    return radius * np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def _place(
    rng: Random, size: int, classes: Sequence[str], objects: Sequence[DrawnObject], tries: int = 12
) -> tuple[str, list[Outline]] | None:
    """A rotated and stretched shape where it covers little of the others; None when there is no space."""
    for _ in range(tries):
        name = classes[int(rng.integers(len(classes)))]
        radius = size * math.exp(rng.uniform(math.log(SIDE[0]), math.log(SIDE[1]))) / 2
        stretch, angle = math.exp(rng.uniform(-0.2, 0.2)), rng.uniform(0, 2 * math.pi)
        turn = np.asarray([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        centre = rng.uniform(0, size, 2)
        outlines = [(line * [stretch, 1 / stretch] * radius) @ turn.T + centre for line in outlines_of(name)]
        low, high = outlines[0].min(axis=0), outlines[0].max(axis=0)
        box = _bounds(outlines, size)
        inside = (box[2] - box[0]) * (box[3] - box[1]) / float(np.prod(high - low))
        if inside >= INSIDE and all(_overlap(box, other.box) <= MOST_OVERLAP for other in objects):
            return name, outlines
    return None


def _bounds(outlines: Sequence[Outline], size: int) -> tuple[float, float, float, float]:
    """xyxy pixels of the outer outline, clipped to the image."""
    low, high = np.clip(outlines[0].min(axis=0), 0, size), np.clip(outlines[0].max(axis=0), 0, size)
    return (float(low[0]), float(low[1]), float(high[0]), float(high[1]))


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over the smaller of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(0.0, width) * max(0.0, height) / max(smaller, 1e-9)


def _write_image(
    folder: Path, i: int, seed: tuple[int, int, int], size: int, classes: Sequence[str]
) -> list[DrawnObject]:
    rng = np.random.default_rng(seed)
    pixels, objects = draw_image(rng, size, classes)
    quality = int(rng.integers(80, 96))
    atomic_write(folder / _file_name(i), lambda file: Image.fromarray(pixels).save(file, "JPEG", quality=quality))
    return objects


def _file_name(i: int) -> str:
    return f"{i + 1:06d}.jpg"


def _write_annotations(path: Path, drawn: Sequence[Sequence[DrawnObject]], size: int, classes: Sequence[str]) -> None:
    annotations: list[dict[str, Any]] = []
    for i, objects in enumerate(drawn):
        for item in objects:
            x0, y0, x1, y1 = item.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": classes.index(item.name) + 1,
                    "bbox": [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)],
                    "area": round(item.area, 1),
                    "iscrowd": 0,
                }
            )
    images = [{"id": i + 1, "file_name": _file_name(i), "height": size, "width": size} for i in range(len(drawn))]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(classes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    atomic_text(path, json.dumps(content))
