"""Class-balanced sampling: images of rare classes come several times an epoch.

Gupta et al. 2019 (LVIS, arXiv:1908.03195, §B): a class in a share f of the images has the factor max(1, sqrt(t / f)),
an image the greatest of its classes. Ours: the fractions are rounded once, by systematic sampling, not anew in each
epoch, so that every epoch has the same length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from siamdetr.data.index import DetectionIndex


def repeat_factors(index: DetectionIndex, threshold: float) -> NDArray[np.float64]:
    """[N] factor of each image; 1 for images without boxes. Crowds do not count."""
    images = np.repeat(np.arange(len(index)), index.box_counts())[~index.crowd]
    pairs = np.unique(np.stack([images, index.labels[~index.crowd]], axis=1), axis=0)
    shares = np.bincount(pairs[:, 1], minlength=index.num_classes) / len(index)
    of_class = np.sqrt(np.maximum(1.0, threshold / np.maximum(shares, 1 / len(index))))
    factors = np.ones(len(index))
    np.maximum.at(factors, pairs[:, 0], of_class[pairs[:, 1]])
    return factors


def repeat_positions(factors: NDArray[np.float64]) -> NDArray[np.int64]:
    """Positions of the images of an epoch, in order; each comes its factor's floor or ceiling of times."""
    ends = np.cumsum(factors)
    count = round(float(ends[-1]))
    points = (np.arange(count) + 0.5) * ends[-1] / count
    positions: NDArray[np.int64] = np.searchsorted(ends, points, side="right").astype(np.int64)
    return positions
