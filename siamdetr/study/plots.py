"""Plots of a study: one colour per initialisation, with intervals and names beside the lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from siamdetr.drawing.plot import INK, Plot, plot_figure, rendered
from siamdetr.study.inits import init_colour, init_name
from siamdetr.study.statistics import Interval

Point = tuple[float, Interval]


@dataclass(frozen=True)
class Line:
    """A named series over numbers, in the colour of its initialisation; a point is (x, mean and interval)."""

    init: str
    name: str
    points: tuple[Point, ...]


def lines(name: str, title: str, series: Sequence[Line], *, x_label: str, y_label: str, shares: bool = False) -> Plot:
    """Lines with bands of their intervals; `shares`: x are shares of the labels, on a logarithmic scale."""
    with plot_figure(5.8, 3.4) as figure:
        axes = figure.add_subplot()
        for line in series:
            _line(axes, line)
        _name_the_ends(axes, series)
        if shares:
            _share_axis(axes, sorted({x for line in series for x, _ in line.points}))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        _grid(axes, "y")
        return rendered(name, title, figure)


def differences(name: str, title: str, rows: Mapping[str, Sequence[tuple[str, Interval]]], *, x_label: str) -> Plot:
    """Dots with intervals beside a line at zero: group -> (initialisation, difference)."""
    count = sum(map(len, rows.values())) + len(rows)
    with plot_figure(5.8, max(2.0, 0.7 + 0.26 * count)) as figure:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=0.8, alpha=0.5)
        place, ticks = 0.0, []
        for group, entries in rows.items():
            start = place
            for init, found in entries:
                _dot(axes, found, place, init_colour(init))
                place += 1
            ticks.append(((start + place - 1) / 2, group))
            place += 0.8
        axes.set_yticks([at for at, _ in ticks], [text for _, text in ticks])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(x_label)
        _grid(axes, "x")
        _legend(figure, dict.fromkeys(init for entries in rows.values() for init, _ in entries))
        return rendered(name, title, figure)


def labelled_dots(
    name: str, title: str, groups: Mapping[str, Sequence[tuple[str, Interval]]], *, x_label: str, base: Interval | None
) -> Plot:
    """Dots with intervals, one row each, in titled groups: group -> (label, value).

    `base` is drawn as a band behind them.
    """
    count = sum(map(len, groups.values())) + 1.2 * len(groups)
    with plot_figure(5.8, max(2.0, 0.7 + 0.25 * count)) as figure:
        axes = figure.add_subplot()
        place = 0.0
        ticks: list[float] = []
        texts: list[str] = []
        for group, entries in groups.items():
            ticks.append(place)
            texts.append(f"$\\bf{{{group.replace(' ', '~')}}}$")
            place += 1
            for label, found in entries:
                _dot(axes, found, place, init_colour("siamese"))
                ticks.append(place)
                texts.append(label)
                place += 1
            place += 0.4
        if base is not None:
            axes.axvline(base.mean, color=init_colour("scratch"), linewidth=1.4)
            axes.axvspan(
                base.low or base.mean, base.high or base.mean, color=init_colour("scratch"), alpha=0.15, linewidth=0
            )
            axes.text(base.mean, -1.0, "scratch", color=init_colour("scratch"), ha="center", va="bottom", fontsize=9)
        axes.set_yticks(ticks, texts)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(x_label)
        _grid(axes, "x")
        return rendered(name, title, figure)


def bars(name: str, title: str, groups: Mapping[str, Sequence[tuple[str, Interval]]], *, y_label: str) -> Plot:
    """Vertical bars in groups, with intervals: group -> (initialisation, value)."""
    with plot_figure(5.8, 3.2) as figure:
        axes = figure.add_subplot()
        inits = list(dict.fromkeys(init for entries in groups.values() for init, _ in entries))
        width = 0.8 / max(1, len(inits))
        for k, entries in enumerate(groups.values()):
            for init, found in entries:
                at = k + (inits.index(init) - (len(inits) - 1) / 2) * width
                axes.bar(at, found.mean, width * 0.9, color=init_colour(init), linewidth=0)
                if found.half is not None:
                    axes.errorbar(at, found.mean, found.half, color=INK, linewidth=1, capsize=2.5)
                top = found.mean if found.high is None else found.high
                axes.annotate(
                    f"{found.mean:.1f}", (at, top), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8
                )
        axes.set_xticks(range(len(groups)), list(groups))
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel(y_label)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        _grid(axes, "y")
        _legend(figure, inits)
        return rendered(name, title, figure)


def costs(name: str, title: str, rows: Sequence[tuple[str, str, float]], *, x_label: str, format: str) -> Plot:
    """Horizontal bars with their value at the end: (initialisation, name, value)."""
    with plot_figure(5.8, 0.8 + 0.42 * len(rows)) as figure:
        axes = figure.add_subplot()
        for place, (init, _, value) in enumerate(rows):
            axes.barh(place, value, 0.62, color=init_colour(init), linewidth=0)
            axes.annotate(
                format.format(value), (value, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9
            )
        axes.set_yticks(range(len(rows)), [text for _, text, _ in rows])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.14)
        axes.set_xlim(left=0)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_xlabel(x_label)
        return rendered(name, title, figure)


def heatmap(
    name: str, title: str, cells: Mapping[tuple[float, float], Interval], *, x_label: str, y_label: str
) -> Plot:
    """A heat map with its values written in the cells: (x, y) -> value."""
    xs, ys = sorted({x for x, _ in cells}), sorted({y for _, y in cells})
    grid = np.full((len(ys), len(xs)), np.nan)
    for (x, y), found in cells.items():
        grid[ys.index(y), xs.index(x)] = found.mean
    with plot_figure(1.9 + 0.95 * len(xs), 1.1 + 0.72 * len(ys)) as figure:
        axes = figure.add_subplot()
        spread = float(np.nanmax(grid) - np.nanmin(grid)) or 1.0
        axes.imshow(
            grid,
            cmap="Blues",
            origin="lower",
            aspect="auto",
            vmin=float(np.nanmin(grid)) - 0.25 * spread,
            vmax=float(np.nanmax(grid)) + 0.25 * spread,
        )
        for (x, y), found in cells.items():
            dark = found.mean > float(np.nanmin(grid)) + 0.6 * spread
            text = f"{found.mean:.1f}" if found.half is None else f"{found.mean:.1f}\n±{found.half:.1f}"
            axes.text(
                xs.index(x),
                ys.index(y),
                text,
                ha="center",
                va="center",
                fontsize=9,
                color="#ffffff" if dark else "#15202b",
            )
        axes.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
        axes.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        return rendered(name, title, figure)


def _line(axes: Axes, line: Line) -> None:
    x = [at for at, _ in line.points]
    mean = np.asarray([found.mean for _, found in line.points])
    half = np.asarray([found.half or 0.0 for _, found in line.points])
    colour = init_colour(line.init)
    axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.14, linewidth=0)
    marker = "o" if len(x) <= 12 else None
    axes.plot(x, mean, color=colour, linewidth=1.9, marker=marker, markersize=4.5, markeredgecolor="none")


def _name_the_ends(axes: Axes, series: Sequence[Line]) -> None:
    """Write the names to the right of the lines' ends, moved apart where they would overlap."""
    ends = [(line.points[-1][1].mean, line) for line in series if line.points]
    ends.sort(key=_height)
    low, high = axes.get_ylim()
    step = 0.085 * (high - low)
    places = [height for height, _ in ends]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + step)
    over = max(0.0, places[-1] - high) if places else 0.0
    right = max(line.points[-1][0] for _, line in ends) if ends else 0
    for place, (_, line) in zip(places, ends, strict=True):
        axes.annotate(
            line.name,
            (right, place - over),
            xytext=(9, 0),
            textcoords="offset points",
            color=init_colour(line.init),
            va="center",
            fontsize=9.5,
            fontweight="bold",
            annotation_clip=False,
        )


def _height(end: tuple[float, Line]) -> float:
    return end[0]


def _dot(axes: Axes, found: Interval, place: float, colour: str) -> None:
    if found.low is not None and found.high is not None:
        axes.plot(
            [found.low, found.high], [place, place], color=colour, linewidth=2, solid_capstyle="round", alpha=0.55
        )
    axes.plot([found.mean], [place], marker="o", color=colour, markersize=6, markeredgecolor="none")


def _share_axis(axes: Axes, shares: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(shares, [f"{100 * share:g} %" for share in shares])


def _grid(axes: Axes, axis: str) -> None:
    axes.grid(axis=axis, color=INK, alpha=0.1, linewidth=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def _legend(figure: Figure, inits: Sequence[str] | Mapping[str, None]) -> None:
    handles = [matplotlib.patches.Patch(color=init_colour(init), label=init_name(init)) for init in inits]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        handlelength=1,
        handleheight=1,
    )
