"""Means of few runs with 95 % intervals (Student's t), and differences paired by seed and split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean of n values and half the width of its 95 % interval; None for a single value."""

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float | None:
        """Lower end."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """Upper end."""
        return None if self.half is None else self.mean + self.half

    @property
    def holds_zero(self) -> bool:
        """Whether the interval holds 0, which shows no effect; False without an interval."""
        return self.half is not None and abs(self.mean) <= self.half


def interval(values: Sequence[float]) -> Interval:
    """Mean of independent, roughly normal values, and the 95 % interval of the mean.

    Raises:
        ValueError: no value.
    """
    if not values:
        raise ValueError("interval: got no value, expected at least one")
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return Interval(mean, None, 1)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return Interval(mean, float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n), n)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """Mean of ours minus theirs over the seeds that both have; None: they share none."""
    shared: Iterable[int] = sorted(ours.keys() & theirs.keys())
    differences = [ours[seed] - theirs[seed] for seed in shared]
    return interval(differences) if differences else None
