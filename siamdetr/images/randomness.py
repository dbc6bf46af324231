"""Randomness as a function of (seed, epoch, index), independent of workers, resume and processes."""

from __future__ import annotations

import numpy as np

Random = np.random.Generator

_ORDER_STREAM = 0x0DE7  # keeps the order of an epoch apart from the samples in it


def sample_random(seed: int, epoch: int, index: int) -> Random:
    """The generator of one sample: the three numbers are hashed together (numpy's SeedSequence)."""
    return np.random.default_rng((seed, epoch, index))


def order_random(seed: int, epoch: int) -> Random:
    """The generator of one epoch's order."""
    return np.random.default_rng((seed, epoch, 0, _ORDER_STREAM))
