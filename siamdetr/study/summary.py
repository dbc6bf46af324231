"""A study's figures as rows of study.csv, and the first sentences of its report."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from siamdetr.study.cell import SCRATCH, Cell
from siamdetr.study.inits import init_name
from siamdetr.study.run_cell import CellResult
from siamdetr.study.runner import Grid
from siamdetr.study.statistics import Interval, interval, paired_difference
from siamdetr.system.plain_text import csv_cell

CSV_FILE = "study.csv"


def study_csv(grid: Grid) -> str:
    """One row per finished cell; AP and AR in 0..1."""
    rows = list(grid.results.values())
    figures = list(dict.fromkeys(name for row in rows for name in row.metrics))
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["cell", "kind", "init", "fraction", "seed", "freeze", "variation", "steps", "seconds", *figures])
    for row in rows:
        cell = row.cell
        about = [cell.key, cell.kind, cell.init, cell.fraction, cell.seed, cell.freeze, cell.what, row.steps]
        writer.writerow([*map(csv_cell, about), f"{row.seconds:.1f}", *(row.metrics.get(name, "") for name in figures)])
    return file.getvalue()


def select(grid: Grid, init: str, **wanted: object) -> dict[int, CellResult]:
    """Finished finetunings by seed: of an initialisation, with `fraction` or `variation` as asked."""
    return {
        cell.seed: result
        for cell, result in grid.results.items()
        if cell.kind == "finetune" and cell.init == init and all(getattr(cell, k) == v for k, v in wanted.items())
    }


def values(results: dict[int, CellResult], metric: str) -> dict[int, float]:
    """A figure by seed, in points (0..100)."""
    return {seed: 100 * result.metrics[metric] for seed, result in results.items()}


def mean_of(results: dict[int, CellResult], metric: str) -> Interval | None:
    """Mean over the seeds, in points; None: nothing finished."""
    found = list(values(results, metric).values())
    return interval(found) if found else None


def gain_of(grid: Grid, init: str, metric: str, *, fraction: float, variation: Cell | None = None) -> Interval | None:
    """Paired difference against scratch on the same splits, in points."""
    wanted = () if variation is None else variation.variation
    ours = values(select(grid, init, fraction=fraction, variation=wanted), metric)
    return paired_difference(ours, values(select(grid, SCRATCH, fraction=fraction), metric))


def shown(found: Interval | None, *, signed: bool = False) -> str:
    """ "12.3 ± 1.2", "+12.3 ± 1.2", or a dash."""
    if found is None:
        return "–"
    mean = _signed(found.mean) if signed else f"{found.mean:.1f}"
    return mean if found.half is None else f"{mean}\u00a0±\u00a0{found.half:.1f}"


def answer(grid: Grid) -> str:
    """The report's first sentences."""
    return _ANSWERS[grid.study.study](grid)


def gain_sentence(grid: Grid, init: str, fraction: float) -> str:
    """ "With 10 % of the labels Siamese pretraining gives +x.x AP (95 % CI a to b) over scratch"."""
    found = gain_of(grid, init, "ap", fraction=fraction)
    start = f"With {100 * fraction:g} % of the labels {init_name(init).removesuffix(' DETR')} pretraining "
    if found is None:
        return f"{start}has no finished pair with scratch yet."
    if found.low is None or found.high is None:
        return f"{start}gives {_signed(found.mean)} AP over scratch (one seed: no interval)."
    gain = _signed(found.mean)
    seen = "; an interval that holds 0 shows no effect" if found.holds_zero else ""
    return f"{start}gives {gain} AP (95 % CI {_signed(found.low)} to {_signed(found.high)}) over scratch{seen}."


def _efficiency_answer(grid: Grid) -> str:
    first = "siamese" if "siamese" in grid.study.methods else grid.study.methods[0]
    fraction = min(grid.study.fractions)
    sentences = [gain_sentence(grid, first, fraction)]
    others = [
        f"{init_name(init)} {shown(gain_of(grid, init, 'ap', fraction=fraction), signed=True)}"
        for init in grid.study.methods
        if init != first
    ]
    if others:
        sentences.append(f"There: {_listed(others)}.")
    seeds = len(grid.study.seeds)
    sentences.append(f"{seeds} {'seeds' if seeds > 1 else 'seed'}, paired by split; AP in points.")
    return " ".join(sentences)


def _initialization_answer(grid: Grid) -> str:
    random = mean_of(select(grid, SCRATCH, freeze="body"), "ar100")
    if random is None:
        return "The run with a random body is not finished yet."
    gains = {init: gain_of(grid, init, "ar100", fraction=max(grid.study.fractions)) for init in grid.study.methods}
    parts = [f"{init_name(init)} {shown(gain, signed=True)}" for init, gain in gains.items()]
    unsure = any(gain is not None and gain.holds_zero for gain in gains.values())
    note = "; an interval that holds 0 shows no effect" if unsure else ""
    raw = {cell.init: result for cell, result in grid.results.items() if cell.kind == "agnostic"}
    as_is = [
        f"{'random' if init == SCRATCH else init_name(init)} {100 * one.metrics['ar100']:.1f}"
        for init, one in raw.items()
    ]
    return (
        f"With the body frozen and only the heads finetuned, AR@100 is {shown(random)} with a random body; over it: {_listed(parts)}{note}."
        + (f" Not finetuned at all, on any object: {_listed(as_is)}." if as_is else "")
    )


def _best_answer(grid: Grid) -> str:
    fraction = min(grid.study.fractions)
    cells = {cell.variation: cell for cell in grid.cells if cell.kind == "finetune" and cell.init == "siamese"}
    scored = [
        (found.mean, cell)
        for cell in cells.values()
        if (found := mean_of(select(grid, "siamese", fraction=fraction, variation=cell.variation), "ap")) is not None
    ]
    if not scored:
        return "Nothing is finished yet."
    (best, cell), (worst, other) = max(scored, key=_first), min(scored, key=_first)
    gain = gain_of(grid, "siamese", "ap", fraction=fraction, variation=cell)
    return (
        f"With {100 * fraction:g} % of the labels the best setting is {cell.what or 'the preset as it is'}: {best:.1f} AP, "
        f"{shown(gain, signed=True)} over scratch; the worst is {other.what or 'the preset as it is'}, {worst:.1f} AP. "
        "Where intervals overlap, the difference may be chance."
    )


def _cost_answer(grid: Grid) -> str:
    parts = [
        f"{init_name(cell.init)} {result.metrics['seconds_per_step']:.3g} s and {result.metrics['memory_mib']:,.0f} MiB"
        for cell, result in grid.results.items()
        if cell.kind == "cost"
    ]
    batch = next((f" of {result.metrics['batch_size']:.0f}" for result in grid.results.values()), "")
    return f"A pretraining step{batch} takes: {_listed(parts)}." if parts else "Nothing is finished yet."


def _convergence_answer(grid: Grid) -> str:
    scratch = mean_curve(select(grid, SCRATCH).values())
    if not scratch:
        return "The run from scratch is not finished yet."
    best = max(ap for _, ap, _ in scratch)
    took = next(epoch for epoch, ap, _ in scratch if ap == best)
    parts = []
    for init in grid.study.methods:
        curve = mean_curve(select(grid, init).values())
        reached = next((epoch for epoch, ap, _ in curve if ap >= best), None)
        if reached is not None:
            parts.append(f"{init_name(init)} after {reached:.3g} ({100 * reached / took:.0f} % of them)")
        else:
            parts.append(f"{init_name(init)} {f'not within {curve[-1][0]:.3g}' if curve else 'is not finished yet'}")
    return (
        f"Scratch reaches its best AP on the val part, {100 * best:.1f}, after {took:.3g} epochs; pretrained, it is reached by: "
        f"{_listed(parts)}. Looked at {len(scratch)} times; means over seeds."
    )


def mean_curve(results: Iterable[CellResult]) -> list[tuple[float, float, float]]:
    """(epoch, AP, AP50) means over seeds, at the evaluations that all of them have."""
    curves = [result.curve for result in results if result.curve]
    if not curves:
        return []
    return [
        (points[0][0], sum(p[1] for p in points) / len(points), sum(p[2] for p in points) / len(points))
        for points in zip(*curves, strict=False)
    ]


def _qualitative_answer(grid: Grid) -> str:
    names = [init_name(cell.init) for cell in grid.results if cell.kind == "qualitative"]
    return (
        f"What {_listed(names)} find before any finetuning, and where the decoder looks." if names else "Nothing yet."
    )


def _signed(value: float) -> str:
    """A number with its sign, with the typographic minus."""
    return f"{value:+.1f}".replace("-", "−")


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] if parts else ""


def _first(pair: tuple[float, Cell]) -> float:
    return pair[0]


_ANSWERS = {
    "data-efficiency": _efficiency_answer,
    "initialization": _initialization_answer,
    "sensitivity": _best_answer,
    "ablation": _best_answer,
    "cost": _cost_answer,
    "convergence": _convergence_answer,
    "qualitative": _qualitative_answer,
}
