"""Plots of an evaluation: precision-recall and F1 curves, and the confusion matrix."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from siamdetr.drawing.plot import INK, Plot, plot_figure, rendered
from siamdetr.evaluation.confusion import BACKGROUND, Confusion
from siamdetr.evaluation.thresholds import ALL_CLASSES, ThresholdCurve, best_f1

_COLOURS = ("#2f7ed8", "#e4572e", "#2a9d6f", "#b07aa1", "#c99700", "#5b8c9e")
_MOST_CLASSES = 6  # drawn by name; of more the most frequent
_MOST_CELLS = 12  # classes whose counts are written into the matrix
_SHORTEST = 14  # letters of a class name that are written at an axis


def precision_recall(curves: tuple[ThresholdCurve, ...]) -> Plot:
    """Precision over recall, all classes and the most frequent ones."""
    with plot_figure(5.8, 3.6) as figure:
        axes = figure.add_subplot()
        for curve, colour, width in _shown(curves):
            axes.plot(curve.recall, curve.precision, color=colour, linewidth=width, label=curve.name)
        _frame(axes, "recall", "precision")
        return rendered("precision-recall", "Precision and recall (IoU .5)", figure)


def f1_over_threshold(curves: tuple[ThresholdCurve, ...]) -> Plot:
    """F1 over the threshold, the best point of all classes marked."""
    with plot_figure(5.8, 3.6) as figure:
        axes = figure.add_subplot()
        for curve, colour, width in _shown(curves):
            axes.plot(curve.thresholds, curve.f1, color=colour, linewidth=width, label=curve.name)
        best = best_f1(curves[0])
        if best is not None:
            axes.plot([best.threshold], [best.f1], marker="o", color=INK, markersize=5)
            axes.annotate(
                f"{best.f1:.2f} at {best.threshold:.2f}",
                (best.threshold, best.f1),
                xytext=(6, 6),
                textcoords="offset points",
                fontsize=9,
            )
        _frame(axes, "threshold of the score", "F1")
        return rendered("f1", "F1 over the threshold (IoU .5)", figure)


def confusion_matrix(confusion: Confusion) -> Plot:
    """Shares of each true class (rows), with counts where there is room for them."""
    names = [*(_short(name) for name in confusion.class_names), BACKGROUND]
    count = len(names)
    side = min(9.0, 2.4 + 0.42 * count)
    with plot_figure(side, side * 0.86) as figure:
        axes = figure.add_subplot()
        shares = confusion.counts / np.maximum(1, confusion.counts.sum(1, keepdims=True))
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        step = max(1, count // 24)
        axes.set_xticks(range(0, count, step), names[::step], rotation=45, ha="right", fontsize=9)
        axes.set_yticks(range(0, count, step), names[::step], fontsize=9)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        if count <= _MOST_CELLS + 1:
            _write_counts(axes, confusion.counts, shares)
        return rendered("confusion", "Confusion matrix (IoU .5)", figure)


def _write_counts(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for row, column in np.argwhere(counts > 0):
        ink = "white" if shares[row, column] > 0.55 else "#1d2126"
        axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=8.5, color=ink)


def _shown(curves: tuple[ThresholdCurve, ...]) -> list[tuple[ThresholdCurve, str, float]]:
    """(curve, colour, line width) of all classes together, then of the most frequent classes.

    The first has the colour of the text.
    """
    classes = sorted(curves[1:], key=lambda curve: -curve.num_objects)[:_MOST_CLASSES]
    each = [(curve, colour, 1.3) for curve, colour in zip(classes, _COLOURS, strict=False)]
    assert curves[0].name == ALL_CLASSES
    return [(curves[0], INK, 2.0), *(each if len(curves) > 2 else [])]


def _frame(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=x_label, ylabel=y_label)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(color=INK, alpha=0.1, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)


def _short(name: str) -> str:
    return name if len(name) <= _SHORTEST else f"{name[: _SHORTEST - 1]}…"
