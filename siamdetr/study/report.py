"""Write a study's report.html, study.csv and plots from the finished cells, in the folder of its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from markupsafe import Markup

from siamdetr.drawing.html_page import Section, page, picture, table
from siamdetr.drawing.plot import Plot, save_plots
from siamdetr.files import REPORT_FILE
from siamdetr.settings.base import to_json
from siamdetr.study import plots
from siamdetr.study.cell import SCRATCH, Cell
from siamdetr.study.grids import ablation_variations, sensitivity_variations
from siamdetr.study.inits import init_name
from siamdetr.study.pictures import ATTENTION, BOXES, TRUTH
from siamdetr.study.plots import Line
from siamdetr.study.run_cell import CELLS, ERROR_FILE, cell_folder, scored_index
from siamdetr.study.runner import Grid
from siamdetr.study.statistics import Interval, interval
from siamdetr.study.study_folder import SPLITS_FILE
from siamdetr.study.summary import CSV_FILE, answer, gain_of, mean_of, select, shown, study_csv
from siamdetr.system.atomic_file import atomic_text

TITLES = {
    "data-efficiency": "How much do labels count?",
    "initialization": "What the detector knows before finetuning",
    "sensitivity": "How the two loss weights matter",
    "ablation": "What of Siamese pretraining matters",
    "cost": "What a pretraining step costs",
    "convergence": "How fast finetuning converges",
    "qualitative": "Boxes and attention without finetuning",
}
_FRACTIONS, _INITS = "Share of the labels", "initialisation"


def write_study_report(grid: Grid) -> Path:
    """Write report.html, study.csv and plots/ into the study's folder; returns the report's path."""
    drawn, sections = _SECTIONS[grid.study.study](grid)
    save_plots(grid.place, drawn)
    text = study_csv(grid)
    atomic_text(grid.place / CSV_FILE, text)
    html = page(TITLES[grid.study.study], f"{answer(grid)}{_of_start(grid)}", [*sections, *_state(grid), _method(grid)])
    path = grid.place / REPORT_FILE
    atomic_text(path, html)
    return path


def _of_start(grid: Grid) -> str:
    start = grid.study.start
    return "" if start is None else f" Every run starts from {start}; “scratch” is that start without pretraining."


Drawn = tuple[list[Plot], list[Section]]


def _shown(drawn: Sequence[Plot]) -> list[Section]:
    return [Section(plot.title, plot.inline) for plot in drawn]


def _data_efficiency(grid: Grid) -> Drawn:
    inits, fractions = (SCRATCH, *grid.study.methods), sorted(grid.study.fractions)
    drawn = []
    for metric, label in (("ap", "AP"), ("ap50", "AP50")):
        series = [Line(init, init_name(init), tuple(_over(grid, init, metric))) for init in inits]
        series = [line for line in series if line.points]
        if series:
            title = f"{label} on the scored images, mean and 95 % interval"
            drawn.append(plots.lines(metric, title, series, x_label=_FRACTIONS, y_label=label, shares=True))
        gains = {f"{100 * fraction:g} %": _gains(grid, fraction, metric) for fraction in fractions}
        if any(gains.values()):
            title, axis = f"{label} over scratch, paired by split", f"{label} points over scratch, 95 % interval"
            drawn.append(plots.differences(f"gain-{metric}", title, gains, x_label=axis))
    return drawn, [*_shown(drawn), _efficiency_table(grid, fractions)]


def _gains(grid: Grid, fraction: float, metric: str) -> list[tuple[str, Interval]]:
    found = ((init, gain_of(grid, init, metric, fraction=fraction)) for init in grid.study.methods)
    return [(init, one) for init, one in found if one is not None]


def _over(grid: Grid, init: str, metric: str) -> list[tuple[float, Interval]]:
    found = ((share, mean_of(select(grid, init, fraction=share), metric)) for share in sorted(grid.study.fractions))
    return [(share, one) for share, one in found if one is not None]


def _efficiency_table(grid: Grid, fractions: Sequence[float]) -> Section:
    rows = []
    for fraction in fractions:
        for init in (SCRATCH, *grid.study.methods):
            found = select(grid, init, fraction=fraction)
            figures = [shown(mean_of(found, metric)) for metric in ("ap", "ap50", "ar100")]
            gains = ["", ""]
            if init != SCRATCH:
                gains = [
                    shown(gain_of(grid, init, metric, fraction=fraction), signed=True) for metric in ("ap", "ap50")
                ]
            rows.append([f"{100 * fraction:g} %", init_name(init), len(found), *figures, *gains])
    header = ["labels", _INITS, "runs", "AP", "AP50", "AR@100", "AP over scratch", "AP50 over scratch"]
    return Section("Mean ± half of the 95 % interval, in points", table(header, rows), wide=True)


def _initialization(grid: Grid) -> Drawn:
    inits = (SCRATCH, *grid.study.methods)
    names = {"ar1": "AR@1", "ar10": "AR@10", "ar100": "AR@100"}
    heads = {
        label: [(init, one) for init in inits if (one := mean_of(select(grid, init, freeze="body"), metric))]
        for metric, label in names.items()
    }
    raw = {cell.init: result for cell, result in grid.results.items() if cell.kind == "agnostic"}
    as_is = {
        label: [(init, interval([100 * raw[init].metrics[metric]])) for init in inits if init in raw]
        for metric, label in names.items()
    }
    drawn = []
    if any(heads.values()):
        drawn.append(plots.bars("heads", "Body frozen, class and box heads finetuned", heads, y_label="recall, points"))
    if any(as_is.values()):
        drawn.append(
            plots.bars("as-is", "Not finetuned at all: any object, no classes", as_is, y_label="recall, points")
        )
    rows = []
    for init in inits:
        frozen = select(grid, init, freeze="body")
        figures = [shown(mean_of(frozen, metric)) for metric in (*names, "ap", "ap50")]
        plain = [f"{100 * raw[init].metrics[metric]:.1f}" if init in raw else None for metric in names]
        rows.append([init_name(init), *figures, *plain])
    header = [_INITS, *names.values(), "AP", "AP50", *(f"{name}, not finetuned" for name in names.values())]
    return drawn, [
        *_shown(drawn),
        Section("Mean ± half of the 95 % interval, in points", table(header, rows), wide=True),
    ]


def _sensitivity(grid: Grid) -> Drawn:
    fraction, drawn = min(grid.study.fractions), []
    for metric, label in (("ap", "AP"), ("ap50", "AP50")):
        cells = {
            at: one
            for at, variation in sensitivity_variations(grid.study).items()
            if (one := mean_of(select(grid, "siamese", fraction=fraction, variation=variation), metric))
        }
        if cells:
            title = f"{label} with {100 * fraction:g} % of the labels"
            drawn.append(plots.heatmap(f"lambda-{metric}", title, cells, x_label="λ global", y_label="λ region"))
    rows = [
        [f"{glob:g}", f"{region:g}", *_row(grid, variation, fraction)]
        for (glob, region), variation in sensitivity_variations(grid.study).items()
    ]
    header = ["λ global", "λ region", *_ROW]
    return drawn, [*_shown(drawn), Section("All settings, in points", table(header, rows), wide=True)]


_ROW = ("runs", "AP", "AP50", "AP over scratch")


def _row(grid: Grid, variation: tuple[tuple[str, str], ...], fraction: float) -> list[object]:
    found = select(grid, "siamese", fraction=fraction, variation=variation)
    cell = Cell("finetune", "siamese", variation=variation)
    gain = shown(gain_of(grid, "siamese", "ap", fraction=fraction, variation=cell), signed=True)
    return [len(found), shown(mean_of(found, "ap")), shown(mean_of(found, "ap50")), gain]


def _ablation(grid: Grid) -> Drawn:
    fraction, drawn = min(grid.study.fractions), []
    for metric, label in (("ap", "AP"), ("ap50", "AP50")):
        groups = {
            group: [
                (name, one)
                for name, variation in variations.items()
                if (one := mean_of(select(grid, "siamese", fraction=fraction, variation=variation), metric))
            ]
            for group, variations in ablation_variations(grid.study).items()
        }
        if any(groups.values()):
            base = mean_of(select(grid, SCRATCH, fraction=fraction), metric)
            title, axis = f"{label} with {100 * fraction:g} % of the labels", f"{label}, 95 % interval"
            drawn.append(plots.labelled_dots(f"ablation-{metric}", title, groups, x_label=axis, base=base))
    rows = [
        [group, name, *_row(grid, variation, fraction)]
        for group, variations in ablation_variations(grid.study).items()
        for name, variation in variations.items()
    ]
    title = "One thing varied at a time, in points"
    return drawn, [*_shown(drawn), Section(title, table(["what", "setting", *_ROW], rows), wide=True)]


def _cost(grid: Grid) -> Drawn:
    found = [(cell.init, result.metrics) for cell, result in grid.results.items() if cell.kind == "cost"]
    if not found:
        return [], []
    where = "of the GPU" if found[0][1]["on_gpu"] else "of the process (no GPU)"
    seconds = [(init, init_name(init), metrics["seconds_per_step"]) for init, metrics in found]
    memory = [(init, init_name(init), metrics["memory_mib"]) for init, metrics in found]
    drawn = [
        plots.costs("seconds", "Time of a pretraining step, median", seconds, x_label="seconds", format="{:.3g} s"),
        plots.costs("memory", f"Peak memory {where}", memory, x_label="MiB", format="{:,.0f}"),
    ]
    rows = [
        [
            init_name(init),
            f"{metrics['batch_size']:.0f}",
            f"{metrics['seconds_per_step']:.4f}",
            f"{metrics['memory_mib']:,.0f}",
        ]
        for init, metrics in found
    ]
    header = ["method", "images a step", "seconds a step", f"peak MiB {where}"]
    return drawn, [*_shown(drawn), Section("One set-up, one process each", table(header, rows), wide=True)]


def _convergence(grid: Grid) -> Drawn:
    drawn = []
    for which, label in ((1, "AP"), (2, "AP50")):
        series = [Line(init, init_name(init), _curve(grid, init, which)) for init in (SCRATCH, *grid.study.methods)]
        series = [line for line in series if line.points]
        if series:
            title = f"{label} on the val part while finetuning, mean and 95 % interval"
            drawn.append(plots.lines(f"convergence-{label.lower()}", title, series, x_label="epoch", y_label=label))
    fraction = max(grid.study.fractions)
    return drawn, [*_shown(drawn), _efficiency_table(grid, [fraction])]


def _curve(grid: Grid, init: str, which: int) -> tuple[tuple[float, Interval], ...]:
    curves = [result.curve for result in select(grid, init).values() if result.curve]
    return tuple(
        (points[0][0], interval([100 * point[which] for point in points])) for points in zip(*curves, strict=False)
    )


def _qualitative(grid: Grid) -> Drawn:
    cells = [cell for cell in grid.results if cell.kind == "qualitative"]
    body = Markup("")
    for i in range(grid.study.shown if cells else 0):
        row = _picture(grid, cells[0], f"{i}-{TRUTH}", "labels")
        for cell in cells:
            row += _picture(grid, cell, f"{i}-{BOXES}", f"{init_name(cell.init)}: best boxes")
        row += Markup("<div></div>")
        for cell in cells:
            row += _picture(grid, cell, f"{i}-{ATTENTION}", f"{init_name(cell.init)}: attention")
        columns = f"grid-template-columns:repeat({1 + len(cells)},minmax(0,1fr))"
        body += Markup('<div class=strip style="{}">{}</div>').format(columns, row)
    title = "As many best boxes as there are labels; attention of their queries in the last decoder layer"
    return [], [Section(title, body, wide=True)] if cells else []


def _picture(grid: Grid, cell: Cell, name: str, caption: str) -> Markup:
    path = cell_folder(grid.folder, cell) / f"{name}.jpg"
    return picture(path.read_bytes(), caption) if path.is_file() else Markup("<div></div>")


def _state(grid: Grid) -> list[Section]:
    """Unfinished cells, failures and notes."""
    lines = list(grid.notes)
    if grid.missing:
        lines.append(
            f"{len(grid.missing)} of {len(grid.cells)} cells are not finished: the same command goes on with them."
        )
    for cell in grid.missing:
        path = cell_folder(grid.folder, cell) / ERROR_FILE
        if path.is_file():
            lines.append(f"{cell.key} failed: {path.read_text(encoding='utf-8')[:300]}")
    body = Markup("").join(Markup("<p>{}</p>").format(line) for line in lines)
    return [Section("To know before reading the figures", body, wide=True)] if lines else []


def _method(grid: Grid) -> Section:
    split, index = scored_index(grid.study)
    seconds = sum(result.seconds for result in grid.results.values())
    took = f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
    text = (
        f"Scored on {len(index):,} images (part “{split}”) with the weights that were best on the val part. Labelled images to train on: "
        f"{len(grid.train):,}. Scratch has the same detector, backbone weights, splits, seeds, order of images and length of finetuning. Each method is "
        "pretrained once, and all its finetunings start from there: the intervals (Student's t over seeds) speak of splits and finetuning, not of "
        f"pretraining anew. Together these cells took {took}. All figures: {CSV_FILE}; in the folder above, which studies with these settings share: {SPLITS_FILE} and {CELLS}."
    )
    settings = json.dumps(to_json(grid.study), indent=1)
    body = Markup("<p>{}</p><details><summary>Settings</summary><pre>{}</pre></details>").format(text, settings)
    return Section("How this was measured", body, wide=True)


_SECTIONS: dict[str, Callable[[Grid], Drawn]] = {
    "data-efficiency": _data_efficiency,
    "initialization": _initialization,
    "sensitivity": _sensitivity,
    "ablation": _ablation,
    "cost": _cost,
    "convergence": _convergence,
    "qualitative": _qualitative,
}
