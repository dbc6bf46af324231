"""Painting for `synthetic.shapes`: colours, backgrounds, textures, clutter, shaded shapes.

Pictures are float32 [H, W, 3] RGB in 0..255 while they are painted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siamdetr.images import opencv as cv2
from siamdetr.images.randomness import Random

Picture = NDArray[np.float32]
Field = NDArray[np.float32]  # [h, w] in 0..1
Texture = Callable[[int, int], Picture]  # (height, width) -> colours

_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Palette:
    """Hues of one picture, in turns of the colour circle."""

    ground: float
    objects: tuple[float, float, float]


def palette(rng: Random) -> Palette:
    """A background hue and three hues that differ from it."""
    ground = float(rng.random())
    steps = np.asarray([0.3, 0.5, 0.7]) + rng.uniform(-0.08, 0.08, 3)
    first, second, third = (float((ground + step) % 1) for step in steps)
    return Palette(ground, (first, second, third))


def colour(hue: float, saturation: float, value: float) -> Picture:
    """[3] RGB in 0..255."""
    pixel = np.asarray([[[360 * (hue % 1), saturation, value]]], dtype=np.float32)
    return np.asarray(cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0] * 255, dtype=np.float32)


def clouds(rng: Random, height: int, width: int, *, coarse: int = 3, octaves: int = 4) -> Field:
    """Smooth noise: random grids, each twice as fine and half as strong as the one before."""
    total, weight, strength = np.zeros((height, width), dtype=np.float32), 0.0, 1.0
    for octave in range(octaves):
        cells = coarse * 2**octave
        if cells > max(height, width):
            break
        grid = rng.random((cells, cells), dtype=np.float32)
        total += strength * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        weight, strength = weight + strength, strength / 2
    return np.asarray(np.clip((total / weight - 0.5) * 1.8 + 0.5, 0, 1), dtype=np.float32)


def ramp(rng: Random, height: int, width: int) -> Field:
    """A linear gradient from 0 to 1 in a random direction."""
    angle = rng.uniform(0, 2 * math.pi)
    x = np.linspace(-1, 1, width, dtype=np.float32) * math.cos(angle)
    y = np.linspace(-1, 1, height, dtype=np.float32) * math.sin(angle)
    field = x[None, :] + y[:, None]
    low, high = float(field.min()), float(field.max())
    return np.asarray((field - low) / max(high - low, 1e-6), dtype=np.float32)


def background(rng: Random, size: int, colours: Palette) -> Picture:
    """Clouds, a gradient with fine grain, or a gradient broken by clouds, in muted colours."""
    value = rng.uniform(0.25, 0.85)
    first = colour(colours.ground + rng.uniform(-0.05, 0.05), rng.uniform(0.1, 0.45), value)
    second = colour(
        colours.ground + rng.uniform(-0.15, 0.15),
        rng.uniform(0.1, 0.45),
        np.clip(value + rng.uniform(-0.35, 0.35), 0.15, 0.95),
    )
    kind = rng.integers(3)
    if kind == 0:
        field = clouds(rng, size, size)
    elif kind == 1:
        field = ramp(rng, size, size) + rng.normal(0, 0.05, (size, size)).astype(np.float32)
    else:
        field = 0.6 * ramp(rng, size, size) + 0.4 * clouds(rng, size, size, coarse=5)
    return _mix(first, second, field)


def clutter(picture: Picture, rng: Random, colours: Palette) -> None:
    """Paint half-transparent lines, blobs and specks on `picture` as distractors."""
    size = picture.shape[0]
    layer = np.clip(picture, 0, 255).astype(np.uint8)  # OpenCV smooths edges in 8 bits only
    for _ in range(int(rng.integers(1, 5))):
        start, end = rng.uniform(-0.1, 1.1, (2, 2)) * size
        cv2.line(
            layer,
            _fixed(start),
            _fixed(end),
            _muted(rng, colours),
            int(rng.integers(1, 3)),
            cv2.LINE_AA,
            _SUBPIXEL_BITS,
        )
    for _ in range(int(rng.integers(0, 4))):
        axes = rng.uniform(0.03, 0.1, 2) * size
        cv2.ellipse(
            layer,
            _fixed(rng.uniform(0, size, 2)),
            _fixed(axes),
            rng.uniform(0, 180),
            0,
            360,
            _muted(rng, colours),
            -1,
            cv2.LINE_AA,
            _SUBPIXEL_BITS,
        )
    for _ in range(int(rng.integers(2, 8))):
        corners = rng.uniform(0, size, 2) + rng.normal(0, 0.025 * size, (int(rng.integers(3, 6)), 2))
        cv2.fillConvexPoly(
            layer, cv2.convexHull(_fixed_corners(corners)), _muted(rng, colours), cv2.LINE_AA, _SUBPIXEL_BITS
        )
    picture += float(rng.uniform(0.4, 0.8)) * (layer - picture)


def texture(rng: Random, colours: Palette) -> Texture:
    """Stripes, checks, clouds or a gradient between two related colours."""
    hue = colours.objects[int(rng.integers(3))]
    first = colour(hue, rng.uniform(0.55, 0.95), rng.uniform(0.65, 1.0))
    second = colour(hue + rng.uniform(-0.08, 0.08), rng.uniform(0.3, 0.9), rng.uniform(0.35, 0.9))
    kind, angle, period, phase = rng.integers(4), rng.uniform(0, math.pi), rng.uniform(5, 12), rng.uniform(0, 6)
    seeds = rng.integers(2**32)

    def fill(height: int, width: int) -> Picture:
        own = np.random.default_rng(seeds)
        if kind == 2:
            return _mix(first, second, clouds(own, height, width, coarse=4))
        if kind == 3:
            return _mix(first, second, ramp(own, height, width))
        x, y = np.arange(width, dtype=np.float32)[None, :], np.arange(height, dtype=np.float32)[:, None]
        turn = 2 * math.pi / period
        u = np.sin((x * math.cos(angle) + y * math.sin(angle)) * turn + phase)
        if kind == 1:
            u = u * np.sin((y * math.cos(angle) - x * math.sin(angle)) * turn) * 2
        return _mix(first, second, np.asarray(np.clip(0.5 + 1.5 * u, 0, 1), dtype=np.float32))

    return fill


def paint(picture: Picture, outlines: Sequence[NDArray[np.float64]], fill: Texture, rng: Random) -> float:
    """Paint a shape on `picture` with a soft shadow, a texture, light from one side and a darker rim.

    Args:
        picture: written to.
        outlines: [k, 2] corners (x, y) in pixels; a second outline is a hole.
        fill: the colours.
        rng: of shadow and light.
    Returns:
        Area inside the picture, pixels².
    """
    size, margin = picture.shape[0], 6
    low = np.clip(np.floor(outlines[0].min(axis=0)).astype(int) - margin, 0, size)
    high = np.clip(np.ceil(outlines[0].max(axis=0)).astype(int) + margin, 0, size)
    part = picture[low[1] : high[1], low[0] : high[0]]
    height, width = part.shape[:2]
    corners = [_fixed_corners(line - low) for line in outlines]
    mask = cv2.fillPoly(np.zeros((height, width), np.uint8), corners, 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    alpha = mask.astype(np.float32)[..., None] / 255
    shift = rng.uniform(1, 3, 2)
    moved = cv2.warpAffine(mask, np.asarray([[1, 0, shift[0]], [0, 1, shift[1]]]), (width, height))
    shadow = cv2.GaussianBlur(moved, (0, 0), 2.0).astype(np.float32)[..., None] / 255
    part *= 1 - float(rng.uniform(0.2, 0.5)) * shadow * (1 - alpha)
    inner = cv2.GaussianBlur(mask, (0, 0), 1.5).astype(np.float32)[..., None] / 255
    light = 0.8 + 0.35 * ramp(rng, height, width)[..., None]
    painted = fill(height, width) * light * (0.45 + 0.55 * inner)
    part += alpha * (painted - part)
    return float(alpha.sum())


def finish(picture: Picture, rng: Random) -> NDArray[np.uint8]:
    """[H, W, 3] uint8 with some sensor noise."""
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(1, 5))
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def _mix(first: Picture, second: Picture, field: Field) -> Picture:
    return np.asarray(first + field[..., None] * (second - first), dtype=np.float32)


def _muted(rng: Random, colours: Palette) -> tuple[float, float, float]:
    hue = (colours.ground, *colours.objects)[int(rng.integers(4))]
    red, green, blue = (float(part) for part in colour(hue, rng.uniform(0.05, 0.5), rng.uniform(0.2, 0.9)))
    return red, green, blue


def _fixed(point: NDArray[np.float64]) -> tuple[int, int]:
    x, y = (round(float(part) * 2**_SUBPIXEL_BITS) for part in point)
    return x, y


def _fixed_corners(corners: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.asarray(np.rint(corners * 2**_SUBPIXEL_BITS), dtype=np.int32)
