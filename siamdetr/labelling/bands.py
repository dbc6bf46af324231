"""Bands of pre-labels: boxes that are sure, boxes that a person should check, and boxes left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from siamdetr.evaluation.thresholds import ThresholdCurve

Band = Literal["sure", "look"]
SURE_PRECISION = 0.9
LOOK_PRECISION = 0.3


@dataclass(frozen=True)
class Bands:
    """Thresholds of the score, 0 <= look <= sure <= 1.

    Attributes:
        sure: boxes of at least this score are accepted.
        look: boxes of at least this score are written for a person to check; others are skipped.
    Raises:
        ValueError: the thresholds are out of range or out of order.
    """

    sure: float = 0.7
    look: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.look <= self.sure <= 1:
            raise ValueError(
                f"bands: got sure {self.sure:g} and look {self.look:g}, expected 0 <= look <= sure <= 1; "
                "give --sure a higher threshold than --look"
            )

    def with_sure(self, sure: float) -> Bands:
        """The same bands with another `sure`; `look` is at most that."""
        return Bands(sure=sure, look=min(self.look, sure))

    def of(self, scores: NDArray[np.float32]) -> list[Band]:
        """The band of each score that reaches `look`."""
        return ["sure" if score >= self.sure else "look" for score in scores]


def choose_bands(curve: ThresholdCurve) -> Bands:
    """Choose bands on labelled images: sure from a precision of .9 on, look from .3 on.

    If the model never reaches that precision, the band starts at its highest score.
    """
    sure, look = _lowest(curve, SURE_PRECISION), _lowest(curve, LOOK_PRECISION)
    if sure is None:
        sure = 1.0
    return Bands(sure=sure, look=min(sure, sure if look is None else look))


def _lowest(curve: ThresholdCurve, precision: float) -> float | None:
    reached = np.flatnonzero(curve.precision >= precision)
    return float(curve.thresholds[reached[-1]]) if len(reached) else None
