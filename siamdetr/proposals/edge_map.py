"""Edge strength and orientation of an image, the input of EdgeBoxes.

They come from a trained model of structured forests (OpenCV's model.yml.gz). Ours: or from a thinned gradient in Lab,
without edges below a fifth of the strong ones, which needs no file.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from siamdetr.errors import DataError
from siamdetr.images import opencv as cv2

EdgeMap = tuple[NDArray[np.float32], NDArray[np.float32]]  # strength, direction

BLUR_SIGMA = 2.0  # pixels at the working size of EdgeBoxes
STRONG_EDGE = 99.0  # percentile of the thinned gradient that becomes edge strength 1
WEAK_EDGE = 0.2  # weaker edges are removed
MOST_EDGES = 0.15  # greatest share of edge pixels: grainy images would otherwise take seconds
GRADIENT = f"gradient lab sigma={BLUR_SIGMA} strong={STRONG_EDGE} weak={WEAK_EDGE} share={MOST_EDGES}"  # names all its parameters


def gradient_edges(pixels: NDArray[np.uint8]) -> EdgeMap:
    """Edge strength and orientation of an image, without a trained edge detector.

    The gradient of the blurred image in Lab, of each pixel's strongest channel, thinned to ridges as in Canny.

    Args:
        pixels: [H, W, 3] uint8 RGB.
    Returns:
        strength [H, W] float32 in 0..1, and direction of the gradient [H, W] float32 in 0..pi: across the edge, which
        is what OpenCV's EdgeBoxes expects (a turn by 90° costs recall).
    """
    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
    smooth = cv2.GaussianBlur(lab, (0, 0), BLUR_SIGMA).astype(np.float32)
    dx, dy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    strongest = (dx * dx + dy * dy).argmax(axis=2)[..., None]
    dx, dy = (np.take_along_axis(part, strongest, axis=2)[..., 0] for part in (dx, dy))
    strength = np.hypot(dx, dy)
    height, width = strength.shape
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    step_x, step_y = dx / (strength + 1e-6), dy / (strength + 1e-6)
    ahead = cv2.remap(strength, columns + step_x, rows + step_y, cv2.INTER_LINEAR)
    behind = cv2.remap(strength, columns - step_x, rows - step_y, cv2.INTER_LINEAR)
    thin = np.where((strength >= ahead) & (strength >= behind), strength, 0)
    thin = np.where(thin > np.quantile(thin, 1 - MOST_EDGES), thin, 0)
    edges = thin[thin > 0]
    strong = float(np.percentile(edges, STRONG_EDGE)) if edges.size else 1.0
    strength = np.clip(thin / strong, 0, 1).astype(np.float32)
    strength[strength < WEAK_EDGE] = 0
    return strength, np.mod(np.arctan2(dy, dx), math.pi).astype(np.float32)


def forest_edges(pixels: NDArray[np.uint8], path: Path) -> EdgeMap:
    """As `gradient_edges`, but from OpenCV's structured forests (Dollár and Zitnick 2013).

    Args:
        pixels: [H, W, 3] uint8 RGB.
        path: the model's file (model.yml.gz).
    Raises:
        DataError: the model cannot be read.
    """
    forest: cv2.ximgproc.StructuredEdgeDetection = _forest(path)
    strength = forest.detectEdges(pixels.astype(np.float32) / 255)
    direction = forest.computeOrientation(strength)
    return np.asarray(forest.edgesNms(strength, direction), np.float32), np.asarray(direction, np.float32)


def check_edge_model(path: Path) -> None:
    """Check that OpenCV can read the edge model; raises DataError."""
    _forest(path)


@functools.lru_cache(maxsize=1)
def _forest(path: Path) -> object:
    """The model, read once per process because reading takes a second."""
    if not path.is_file():
        raise DataError(f"{path}: no such edge model; expected OpenCV's structured forests (model.yml.gz)")
    try:
        return cv2.ximgproc.createStructuredEdgeDetection(str(path))
    except cv2.error as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"{path}: not a model of structured forests that OpenCV reads ({reason}); leave --edge-model out to use the gradient"
        ) from None
