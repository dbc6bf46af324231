"""Parts of report.html, a self-contained page with a light and a dark theme.

The reports of a run (`training/run_report.py`), of a study and of the quickstart consist of them.
"""

from __future__ import annotations

import base64
import csv
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from siamdetr.files import METRICS_FILE

_log = logging.getLogger(__name__)
_COLOURS = ("#2f7ed8", "#e4572e", "#2a9d6f", "#b07aa1", "#c99700", "#5b8c9e")  # readable on white and on black
_INK = "#010203"  # stands for the page's text colour until it is replaced


@dataclass(frozen=True)
class Curve:
    """A named line; x and y have equal length."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Section:
    """A titled box of the page; `wide` ones span both columns."""

    title: str
    body: Markup
    wide: bool = False


def curve(rows: Sequence[Mapping[str, float]], key: str, name: str | None = None) -> Curve:
    """The curve of one column of metrics.csv; rows without it are left out."""
    points = [(row["step"], row[key]) for row in rows if key in row]
    return Curve(name or key, tuple(x for x, _ in points), tuple(y for _, y in points))


def curves_svg(curves: Sequence[Curve], *, y_label: str, x_label: str = "step") -> Markup:
    """An inline SVG of lines in one frame, in the page's own text colour."""
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": y_label + "".join(line.name for line in curves),
        "font.size": 10,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(5.6, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for line, colour in zip(curves, _COLOURS * (1 + len(curves) // len(_COLOURS)), strict=False):
            marker = "o" if len(line.x) <= 40 else None
            axes.plot(line.x, line.y, label=line.name, color=colour, linewidth=1.6, marker=marker, markersize=3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(x_label, color=_INK)
        axes.set_ylabel(y_label, color=_INK)
        axes.tick_params(colors=_INK)
        axes.grid(color=_INK, alpha=0.12, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_INK)
        if len(curves) > 1:
            figure.legend(loc="outside upper center", ncols=4, frameon=False, labelcolor=_INK, fontsize=9)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    return Markup(svg[svg.index("<svg") :].replace(_INK, "currentColor"))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    """An HTML table; floats are shown with three decimals, None as a dash."""
    head = Markup("").join(Markup("<th>{}</th>").format(text) for text in header)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(_cell(value)) for value in row))
        for row in rows
    )
    return Markup("<div class=scroll><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>").format(
        head, body
    )


def picture(data: bytes, caption: str, *, kind: str = "jpeg") -> Markup:
    """An image inside the page."""
    text = base64.b64encode(data).decode()
    return Markup('<figure><img src="data:image/{};base64,{}" alt="{}"><figcaption>{}</figcaption></figure>').format(
        kind, text, caption, caption
    )


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole HTML page: a title, a summary in one sentence, and sections in two columns."""
    return Environment(autoescape=True).from_string(_PAGE).render(title=title, lead=lead, sections=sections)


def read_metrics(folder: str | Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv, oldest first; empty cells are left out. No file: no rows.

    Rows that are not whole, as a kill or a bad disk leaves them, are left out and counted in the log.
    """
    path = Path(folder) / METRICS_FILE
    if not path.is_file():
        return []
    text, _, torn = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    rows = [_metrics_row(cells) for cells in csv.DictReader(text.splitlines())]
    whole = [row for row in rows if row is not None]
    if torn or len(whole) < len(rows):
        _log.warning("%s: damaged rows that are left out: %d", path, len(rows) - len(whole) + bool(torn))
    return whole


def _metrics_row(cells: Mapping[str | None, str | None]) -> dict[str, float] | None:
    """The figures of a row by column; None: the row is damaged."""
    try:
        row = {str(key): float(value) for key, value in cells.items() if value != ""}  # type: ignore[arg-type]
    except (TypeError, ValueError):  # too few cells, too many, or no number
        return None
    return row if "step" in row else None


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ground: #fbfbfa; --card: #ffffff; --ink: #1d2126; --soft: #626b75; --line: #e3e6e9; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171a; --card: #1c2024; --ink: #e6e9ec; --soft: #99a3ad; --line: #2e343a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 32px 20px 64px; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 24px; font-weight: 650; margin: 0 0 8px; }
h2 { font-size: 15px; font-weight: 600; margin: 0 0 10px; color: var(--soft); }
.lead { font-size: 17px; max-width: 75ch; margin: 0 0 26px; }
main { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; align-items: start; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 16px 18px; }
.wide { grid-column: 1 / -1; }
svg { display: block; width: 100%; height: auto; color: var(--ink); }
.scroll { max-height: 420px; overflow: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 4px 10px; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { font-weight: 600; color: var(--soft); }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr)); gap: 14px; }
.samples { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 16px; align-items: start; }
.crops { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 14px; align-items: start; }
.strip { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 10px; margin-bottom: 14px; }
.warning { color: #b3261e; font-weight: 600; margin: 0 0 6px; }
figure { margin: 0; } img { width: 100%; border-radius: 4px; display: block; }
figcaption { color: var(--soft); font-size: 13px; margin-top: 4px; }
summary { cursor: pointer; color: var(--soft); }
pre { margin: 10px 0 0; overflow: auto; font-size: 13px; line-height: 1.45; }
@media (max-width: 760px) { main { grid-template-columns: minmax(0, 1fr); } }
</style></head>
<body><h1>{{ title }}</h1><p class="lead">{{ lead }}</p>
<main>{% for section in sections %}
<section{% if section.wide %} class="wide"{% endif %}><h2>{{ section.title }}</h2>{{ section.body }}</section>
{% endfor %}</main></body></html>
"""
