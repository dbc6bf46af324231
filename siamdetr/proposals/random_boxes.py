"""Random regions in the unit square, for UP-DETR and for views without proposals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from siamdetr.images.randomness import Random

RANDOM_DRAWS = 100
LEAST_AREA = 0.05  # of the square
MOST_ASPECT = 8.0  # longer side / shorter side


def random_boxes(rng: Random, draws: int = RANDOM_DRAWS) -> NDArray[np.float32]:
    """[n, 4] random (x0, y0, x1, y1) in the unit square, n >= 1.

    Those of `draws` uniform pairs of corners whose area is >= .05 and whose aspect is <= 8.

    If none is left, which is unlikely, the centred box of half the sides.
    """
    corners = rng.random((draws, 2, 2))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    good = (width * height >= LEAST_AREA) & (np.maximum(width, height) <= MOST_ASPECT * np.minimum(width, height))
    return boxes[good] if good.any() else np.asarray([[0.25, 0.25, 0.75, 0.75]], dtype=np.float32)
