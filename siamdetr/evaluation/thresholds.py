"""Precision, recall and F1 over the threshold; thresholds of the best F1 or of a wanted precision."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siamdetr.errors import DataError
from siamdetr.evaluation.matched import Matched


@dataclass(frozen=True)
class ThresholdCurve:
    """Precision and recall of one class, or of all together, as the threshold falls.

    Attributes:
        name: of the class.
        num_objects: true boxes, crowds left out.
        thresholds: [n] scores of the detections, falling; at `thresholds[i]` the first i + 1 detections are kept.
        precision: [n] share of the kept detections that are right.
        recall: [n] share of the objects that are found.
    """

    name: str
    num_objects: int
    thresholds: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    @property
    def f1(self) -> NDArray[np.float64]:
        """[n] harmonic mean of precision and recall; 0 where both are."""
        total = self.precision + self.recall
        return np.divide(2 * self.precision * self.recall, total, out=np.zeros_like(total), where=total > 0)


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, and precision, recall and F1 there, all in [0, 1]."""

    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ThresholdRule:
    """How a threshold is chosen on labelled images.

    Attributes:
        precision: the lowest threshold that reaches this precision; None: the threshold of the best F1.
    Raises:
        DataError: a precision outside (0, 1].
    """

    precision: float | None = None

    def __post_init__(self) -> None:
        if self.precision is not None:
            _check_precision(self.precision)

    def __str__(self) -> str:
        return "best F1" if self.precision is None else f"precision {self.precision:g}"

    def choose(self, curve: ThresholdCurve) -> OperatingPoint:
        """The operating point of a curve.

        Raises:
            DataError: nothing was found, or no threshold reaches the precision.
        """
        if self.precision is not None:
            return for_precision(curve, self.precision)
        best = best_f1(curve)
        if best is None:
            raise DataError(f"{curve.name}: no detection is right at any threshold, so none is best; train longer")
        return best


def parse_threshold(text: str) -> float | ThresholdRule:
    """Parse a threshold: `"0.4"` is a score; `"best"` and `"precision=0.9"` are rules.

    Raises:
        DataError: anything else, or a number out of range.
    """
    if text == "best":
        return ThresholdRule()
    name, equals, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if equals and name == "precision" and not math.isnan(value):
        return ThresholdRule(value)
    if not equals and 0 <= value <= 1:
        return value
    raise DataError(
        f"threshold: got '{text}', expected a score from 0 to 1, best, or precision=P such as precision=0.9"
    )


ALL_CLASSES = "all classes"


def threshold_curves(matched: Matched) -> tuple[ThresholdCurve, ...]:
    """The curve of all detections, then of each class with objects or detections, in label order."""
    names = [(None, ALL_CLASSES), *enumerate(matched.index.class_names)]
    curves = [_curve(matched, label, name) for label, name in names]
    return tuple(curve for curve in curves if curve.name == ALL_CLASSES or curve.num_objects or len(curve.thresholds))


def best_f1(curve: ThresholdCurve) -> OperatingPoint | None:
    """The threshold of the best F1, the highest if there are several; None without detections."""
    if not len(curve.thresholds) or not curve.f1.max():
        return None
    return _point(curve, int(curve.f1.argmax()))


def for_precision(curve: ThresholdCurve, wanted: float) -> OperatingPoint:
    """The lowest threshold whose precision is at least `wanted`: as many objects as that precision allows.

    Raises:
        DataError: no threshold reaches it.
    """
    _check_precision(wanted)
    reached = np.flatnonzero(curve.precision >= wanted)
    if not len(reached):
        best = f"{curve.precision.max():.3f}" if len(curve.precision) else "none: nothing was found"
        raise DataError(
            f"{curve.name}: no threshold reaches a precision of {wanted:g} (best: {best}); ask for less, or train longer"
        )
    return _point(curve, int(reached[-1]))


def _check_precision(wanted: float) -> None:
    if not 0 < wanted <= 1:
        raise DataError(f"precision: got {wanted:g}, expected a share above 0 and at most 1")


def _curve(matched: Matched, label: int | None, name: str) -> ThresholdCurve:
    scores, right, objects = matched.counted(label)
    found = right.cumsum()
    # Detections of one score are kept or dropped together.
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True)) if len(scores) else np.zeros(0, dtype=int)
    return ThresholdCurve(
        name, objects, scores[last], found[last] / (last + 1), found[last] / objects if objects else np.zeros(len(last))
    )


def _point(curve: ThresholdCurve, i: int) -> OperatingPoint:
    return OperatingPoint(
        float(curve.thresholds[i]), float(curve.precision[i]), float(curve.recall[i]), float(curve.f1[i])
    )
