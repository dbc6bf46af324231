"""How long the missing cells of a study will take: from finished ones, else from a few steps tried out here."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from siamdetr.report import read_metrics
from siamdetr.study.cells import SCRATCH, Cell
from siamdetr.study.runner import Grid
from siamdetr.study.settings import finetune_settings, pretrain_settings, total_steps
from siamdetr.study.work import CELLS
from siamdetr.training.run import finetune, pretrain
from siamdetr.training.sources import open_unlabelled

_TRIED = 4  # steps, of which the first is not counted


@dataclass(frozen=True)
class Estimate:
    """Seconds of a cell, and where they come from: "finished" cells like it, or steps "tried" here; None: not known."""

    seconds: float | None
    source: str


def estimate(grid: Grid, *, device: str = "auto", told: Callable[[str], None]) -> dict[Cell, Estimate]:
    """Seconds of each missing cell on this machine, one at a time. Evaluation is counted only where finished cells have shown it.

    Args:
        grid: of `open_grid`.
        device: of the runs.
        told: called with what is about to be tried.
    """
    pretraining_images = 0
    rates: dict[str, Estimate] = {}
    found: dict[Cell, Estimate] = {}
    for cell in grid.missing:
        if cell.kind in ("agnostic", "qualitative"):
            found[cell] = Estimate(None, "a scoring only")
            continue
        if cell.kind != "finetune" and not pretraining_images:
            settings = pretrain_settings(grid.study, cell, Path("unused"))
            pretraining_images = len(open_unlabelled(settings.data))
        kind = f"{cell.kind} {cell.init if cell.kind != 'finetune' else ''} {cell.freeze}"
        if kind not in rates:
            rates[kind] = _finished(grid, cell) or _tried(grid, cell, device, told)
        found[cell] = _of_steps(rates[kind], _steps(grid, cell, pretraining_images))
    return found


def _steps(grid: Grid, cell: Cell, pretraining_images: int) -> int:
    if cell.kind != "finetune":
        return total_steps(pretrain_settings(grid.study, cell, Path("unused")), pretraining_images)
    settings = finetune_settings(grid.study, cell, Path("unused"), init=None, num_train=len(grid.train))
    return total_steps(settings, len(grid.train), cell.fraction)


def _of_steps(rate: Estimate, steps: int) -> Estimate:
    return rate if rate.seconds is None else Estimate(rate.seconds * steps, rate.source)


def _finished(grid: Grid, cell: Cell) -> Estimate | None:
    """Seconds a step of finished cells of this kind, their evaluations included."""
    alike = [
        result.seconds / result.steps
        for other, result in grid.results.items()
        if other.kind == cell.kind and (cell.kind == "finetune" or other.init == cell.init) and result.steps
    ]
    return Estimate(median(alike), "finished cells") if alike else None


def _tried(grid: Grid, cell: Cell, device: str, told: Callable[[str], None]) -> Estimate:
    told(f"trying {_TRIED} steps: {cell.kind} {cell.init}")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / CELLS / "tried"
        started = time.perf_counter()
        changes = {"steps": _TRIED, "log_every": 1, "checkpoint_every": 10_000}
        if cell.kind == "finetune":
            plain = replace(cell, init=SCRATCH)
            settings = finetune_settings(grid.study, plain, place, init=None, num_train=len(grid.train), device=device)
            finetune(settings.model_copy(update={**changes, "val_limit": 1, "val_every": 1e6}))
        else:
            chosen = pretrain_settings(grid.study, cell, place, device=device)
            settings_of_few = chosen.model_copy(
                update={**changes, "data": chosen.data.model_copy(update={"fraction": _few(grid)})}
            )
            pretrain(settings_of_few)
        rows = [row for row in read_metrics(place) if "images_per_second" in row]
        if len(rows) < 2:
            return Estimate((time.perf_counter() - started) / _TRIED, f"{_TRIED} steps tried here")
        batch = (settings if cell.kind == "finetune" else chosen).batch_size
        return Estimate(median(batch / row["images_per_second"] for row in rows[1:]), f"{_TRIED} steps tried here")


def _few(grid: Grid) -> float:
    """A share of the images for which proposals can be computed in a moment."""
    return min(1.0, max(32 / max(1, len(grid.train)), 1e-6))
