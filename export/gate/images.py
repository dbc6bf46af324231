"""Images for the gate if none were given.

They are drawn from a fixed seed, so that a verdict is repeatable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from siamdetr.data.index import DetectionIndex
from siamdetr.images.preprocessing import ImageLike, Pixels

_SHAPES = ((480, 640), (333, 500), (640, 480), (375, 300))  # (H, W) of the drawn samples


@dataclass(frozen=True)
class Samples:
    """Images to compare two runtimes on, and their source in words."""

    images: Sequence[ImageLike]
    source: str


def samples_of(index: DetectionIndex, number: int) -> Samples:
    """Images of a data set, spread evenly over it."""
    number = min(number, len(index))
    chosen = np.linspace(0, len(index) - 1, number).round().astype(int)
    return Samples([index.path(int(i)) for i in chosen], f"{number} images of {index.root}")


def drawn_samples() -> Samples:
    """Four coloured patterns of different shapes."""
    images = [drawn_images(1, height, width, seed=height)[0].transpose(1, 2, 0) for height, width in _SHAPES]
    return Samples(images, "patterns drawn from a fixed seed")


def drawn_images(number: int, height: int, width: int, *, seed: int = 0) -> Pixels:
    """[number, 3, height, width] uint8: coloured waves with noise; images differ, calls do not."""
    generator = np.random.default_rng((seed, number))
    y, x = np.mgrid[0:height, 0:width] / 40.0
    images = np.empty((number, 3, height, width), dtype=np.uint8)
    for image in images:
        for channel in image:
            a, b, c, d = generator.uniform(-2, 2, 4)
            wave = np.sin(a * x + b * y + c) * np.cos(d * y)
            channel[...] = (127 + 90 * wave + generator.normal(0, 12, wave.shape)).clip(0, 255)
    return images
