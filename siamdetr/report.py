"""report.html: one file that stands alone, light and dark, with a run's curves, figures, pictures and settings.

The pieces (`Curve`, `curves_svg`, `table`, `picture`, `page`) also make the quickstart's report, which shows two runs together.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from siamdetr.checkpoint import atomic_write
from siamdetr.pretext.collapse import COLLAPSE_REMEDY, collapsed

REPORT_FILE = "report.html"
METRICS_FILE = "metrics.csv"
EVALUATION_FILE = "evaluation.json"  # of the best weights: {"step", "metrics": {name: value}, "per_class": [row, …]}
PROPOSALS_FILE = "proposals.json"  # of pretraining: {"recipe", "rows": [[what, figure], …]}
PICTURES = "pictures"  # folder of jpg files, truth beside prediction, named by what they show
ATTENTION = "attention"  # folder of jpg files, the best boxes and where the decoder looked for them
DIAGNOSTICS = (
    "diagnostics"  # of pretraining: sample-I.jpg, and matched-I-STEP-IOU.jpg of the same images at several steps
)
METHODS = {"siamese": "Siamese DETR", "updetr": "UP-DETR", "detreg": "DETReg"}
_COLOURS = ("#2f7ed8", "#e4572e", "#2a9d6f", "#b07aa1", "#c99700", "#5b8c9e")  # readable on white and on black
_INK = "#010203"  # stands for the page's text colour until it is replaced


@dataclass(frozen=True)
class Curve:
    """A named line; x and y have one length."""

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
    """The whole HTML page: a title, a sentence that says it all, and sections in two columns."""
    return Environment(autoescape=True).from_string(_PAGE).render(title=title, lead=lead, sections=sections)


def write_report(run_folder: str | Path) -> Path:
    """Write report.html from what lies in a run folder; returns its path.

    Raises:
        FileNotFoundError: the folder has no config.yaml, so it is not a run.
    """
    folder = Path(run_folder)
    config = folder / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"{folder}: no config.yaml here; is it a run folder?")
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    rows = read_metrics(folder)
    found = folder / EVALUATION_FILE
    evaluation = json.loads(found.read_text(encoding="utf-8")) if found.is_file() else None
    pictures = [
        *picture_sections(folder),
        *_sample_sections(folder, settings.get("method")),
        *_matched_sections(folder),
    ]
    warnings = _collapse_sections(rows)
    figures = [*_evaluation_sections(evaluation), *_curve_sections(rows), *_proposal_sections(folder)]
    sections = [*warnings, *figures, *pictures]
    config_text = Markup("<details><summary>config.yaml</summary><pre>{}</pre></details>")
    sections.append(Section("Settings", config_text.format(config.read_text(encoding="utf-8")), wide=True))
    text = page(f"siamdetr · {folder.name}", _lead(settings, rows, evaluation), sections)
    atomic_write(folder / REPORT_FILE, lambda file: file.write(text.encode()))
    return folder / REPORT_FILE


def read_metrics(folder: str | Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv, oldest first; empty cells are left out. No file: no rows."""
    path = Path(folder) / METRICS_FILE
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def _lead(
    settings: Mapping[str, Any], rows: Sequence[Mapping[str, float]], evaluation: Mapping[str, Any] | None
) -> str:
    detector = settings["detector"]
    what = f"Pretraining without labels ({METHODS[settings['method']]})" if "method" in settings else "Finetuning"
    model = f"{detector['variant']} DETR on {detector['backbone']}, {detector['encoder_layers']}+{detector['decoder_layers']} layers"
    steps = f"{max((row['step'] for row in rows), default=0):.0f} steps of {settings['batch_size']}"
    text = f"{what} of {model}: {steps} on {', '.join(settings['data']['paths'])}."
    losses = [row["loss"] for row in rows if "loss" in row]
    if losses:
        text += f" The loss went from {losses[0]:.3g} to {losses[-1]:.3g}."
    overlaps = [row["monitor_matched_iou"] for row in rows if "monitor_matched_iou" in row]
    if overlaps:
        text += f" Predictions overlap the regions they are matched to by {overlaps[-1]:.2f} on average (IoU), {overlaps[0]:.2f} at first."
    if evaluation is not None:
        scores = evaluation["metrics"]
        text += f" Best AP {scores['ap']:.3f}, AP50 {scores['ap50']:.3f}, at step {evaluation['step']}."
    return text


def _curve_sections(rows: Sequence[Mapping[str, float]]) -> list[Section]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    parts = [key for key in keys if key.startswith("loss_")]
    monitors = [key for key in keys if key.startswith("monitor_")]
    groups: list[tuple[str, str, list[str]]] = [
        ("Average precision", "AP", [key for key in ("val_ap", "val_ap50", "val_ap75") if key in keys]),
        ("Loss", "loss", ["loss"] if "loss" in keys else []),
        ("Its parts, unweighted", "loss", parts),
        ("Collapse monitors", "value", monitors),
        ("Learning rate", "rate", ["lr"] if "lr" in keys else []),
        ("Throughput", "images a second", ["images_per_second"] if "images_per_second" in keys else []),
    ]
    return [
        Section(title, curves_svg([curve(rows, key, _plain(key)) for key in chosen], y_label=label))
        for title, label, chosen in groups
        if chosen
    ]


def _plain(key: str) -> str:
    name = (
        key.removeprefix("loss_").removeprefix("monitor_").removeprefix("val_").removeprefix("num_").replace("_", " ")
    )
    return name.replace("ap", "AP", 1) if name.startswith("ap") else name.replace("ar1", "AR@1", 1)


def _evaluation_sections(evaluation: Mapping[str, Any] | None) -> list[Section]:
    if evaluation is None:
        return []
    scores = Section(
        "COCO metrics of the best weights",
        table(["metric", "value"], [(_plain(key), value) for key, value in evaluation["metrics"].items()]),
    )
    rows = evaluation["per_class"]
    if not rows:
        return [scores]
    header = list(rows[0])
    body = [[row[key] for key in header] for row in rows]
    return [scores, Section("Per class", table([_plain(key) for key in header], body))]


def _proposal_sections(folder: Path) -> list[Section]:
    """What the proposals of a pretraining run cover."""
    path = folder / PROPOSALS_FILE
    if not path.is_file():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    recipe = Markup("<p>{}</p>").format(content["recipe"])
    return [Section("Proposals", table(["", "figure"], content["rows"]) + recipe)]


def picture_sections(folder: Path) -> list[Section]:
    """What the best weights of a finetuning run found in a few images, and where the decoder looked."""
    titles = {
        PICTURES: "Truth (left) and prediction (right)",
        ATTENTION: "Where the decoder looked for its best boxes, mean over layers and heads",
    }
    sections = []
    for name, title in titles.items():
        files = sorted((folder / name).glob("*.jpg"))
        body = Markup("").join(picture(file.read_bytes(), file.stem) for file in files)
        if files:
            sections.append(Section(title, Markup("<div class=pictures>{}</div>").format(body), wide=True))
    return sections


def _sample_sections(folder: Path, method: str | None) -> list[Section]:
    """What a pretraining method was shown."""
    files = sorted((folder / DIAGNOSTICS).glob("sample-*.jpg"))
    body = Markup("").join(picture(file.read_bytes(), f"image {i + 1}") for i, file in enumerate(files))
    what = (
        "two views of an image, the same regions joined"
        if method == "siamese"
        else "regions to be found in their image"
    )
    body = Markup("<div class=samples>{}</div>").format(body)
    return [Section(f"What the method is shown: {what}", body, wide=True)] if files else []


def _matched_sections(folder: Path) -> list[Section]:
    """One row an image, one column a step."""
    rows: dict[str, Markup] = {}
    for file in sorted((folder / DIAGNOSTICS).glob("matched-*.jpg")):
        _, image, step, iou = file.stem.split("-")
        shown = picture(file.read_bytes(), f"step {int(step)}, mean IoU {float(iou):.2f}")
        rows[image] = rows.get(image, Markup("")) + shown
    body = Markup("").join(Markup("<div class=strip>{}</div>").format(row) for row in rows.values())
    title = "Matched predictions over time: targets tinted and dashed, predictions solid in the same colour (the first five regions)"
    return [Section(title, body, wide=True)] if rows else []


def _collapse_sections(rows: Sequence[Mapping[str, float]]) -> list[Section]:
    """A warning where the last figures speak of a collapse."""
    last = next((row for row in reversed(rows) if "loss" in row), {})
    texts = collapsed(last).values()
    items = Markup("").join(Markup("<p class=warning>{}</p>").format(f"Collapse: {text}.") for text in texts)
    return [Section("Warning", items + Markup("<p>{}.</p>").format(COLLAPSE_REMEDY), wide=True)] if texts else []


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
