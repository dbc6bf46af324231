"""Plots for reports: one style, SVG in the page's own text colour, and PNG."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from siamdetr.system.atomic_file import atomic_bytes

PLOTS = "plots"
INK = "#010203"  # stands for the page's text colour until it is replaced
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "siamdetr",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Plot:
    """A picture: its file's name, its title in the report, its SVG text and its PNG bytes."""

    name: str
    title: str
    svg: str
    png: bytes

    @property
    def inline(self) -> Markup:
        """For the report: in the page's own text colour."""
        return Markup(self.svg[self.svg.index("<svg") :].replace(INK, "currentColor"))


def save_plots(folder: Path, plots: Sequence[Plot]) -> None:
    """Write `plots/NAME.svg` and `plots/NAME.png` below a folder."""
    for plot in plots:
        svg = plot.svg.replace(INK, "#1d2126").encode()
        atomic_bytes(folder / PLOTS / f"{plot.name}.svg", svg)
        atomic_bytes(folder / PLOTS / f"{plot.name}.png", plot.png)


@contextmanager
def plot_figure(width: float, height: float) -> Iterator[Figure]:
    """A figure in the style of all plots, `width` x `height` inches."""
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def rendered(name: str, title: str, figure: Figure) -> Plot:
    """The plot of a finished figure, as SVG and as PNG at 200 dots an inch."""
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    figure.savefig(png, format="png", dpi=200, facecolor="white")
    return Plot(name, title, svg.getvalue(), png.getvalue())
