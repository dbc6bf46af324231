"""Estimate the duration of a study's missing cells from finished cells, or from a few trial steps."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from siamdetr.api import SiamDETR
from siamdetr.drawing.html_page import read_metrics
from siamdetr.evaluation.coco import evaluate
from siamdetr.study.cell import SCRATCH, Cell
from siamdetr.study.run_cell import CELLS, scored_index
from siamdetr.study.runner import Grid
from siamdetr.study.settings import finetune_settings, pretrain_settings, total_steps
from siamdetr.training.finetune import finetune
from siamdetr.training.open_datasets import open_unlabelled
from siamdetr.training.pretrain import pretrain

_TRIED = 4  # steps, of which the first is not counted


@dataclass(frozen=True)
class Estimate:
    """Seconds of a cell, and their source: "finished cells" or "steps tried here"; None: unknown."""

    seconds: float | None
    source: str


@dataclass(frozen=True)
class _Rate:
    """Costs of a kind of cell: seconds to start, seconds per step, seconds per scored image."""

    start: float
    step: float
    image: float
    source: str


def estimate(grid: Grid, *, device: str = "auto", told: Callable[[str], None]) -> dict[Cell, Estimate]:
    """Estimate the seconds of each missing cell on this machine, one cell at a time.

    Args:
        grid: of `open_grid`.
        device: of the runs.
        told: called with each cell before its trial.
    """
    num_unlabelled = 0
    rates: dict[str, _Rate] = {}
    found: dict[Cell, Estimate] = {}
    for cell in grid.missing:
        if cell.kind in ("agnostic", "qualitative"):
            found[cell] = Estimate(None, "a scoring only")
            continue
        if cell.kind != "finetune" and not num_unlabelled:
            settings = pretrain_settings(grid.study, cell, Path("unused"))
            num_unlabelled = len(open_unlabelled(settings.data))
        kind = f"finetune {cell.freeze}" if cell.kind == "finetune" else f"{cell.kind} {cell.init}"
        if kind not in rates:
            rates[kind] = _finished(grid, cell) or _tried(grid, cell, device, told)
        rate = rates[kind]
        steps, scored = _work(grid, cell, num_unlabelled)
        found[cell] = Estimate(rate.start + steps * rate.step + scored * rate.image, rate.source)
    return found


def _work(grid: Grid, cell: Cell, num_unlabelled: int) -> tuple[int, int]:
    """Numbers of steps and of scored images of a cell."""
    if cell.kind != "finetune":
        return total_steps(pretrain_settings(grid.study, cell, Path("unused")), num_unlabelled), 0
    settings = finetune_settings(grid.study, cell, Path("unused"), init=None, num_train=len(grid.train))
    val = min(grid.num_val, settings.val_limit or grid.num_val)
    scored = grid.study.evaluations * val + len(scored_index(grid.study)[1])
    return total_steps(settings, len(grid.train), cell.fraction), scored


def _finished(grid: Grid, cell: Cell) -> _Rate | None:
    """Seconds per step of finished cells of this kind, everything included."""
    alike = [
        result.seconds / result.steps
        for other, result in grid.results.items()
        if other.kind == cell.kind and (cell.kind == "finetune" or other.init == cell.init) and result.steps
    ]
    return _Rate(0.0, median(alike), 0.0, "finished cells") if alike else None


def _tried(grid: Grid, cell: Cell, device: str, told: Callable[[str], None]) -> _Rate:
    """Run a few steps like the cell's, in a temporary folder."""
    told(f"trying {_TRIED} steps: {cell.kind} {cell.init}")
    changes = {"steps": _TRIED, "log_every": 1, "checkpoint_every": 10_000}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / CELLS / "tried"
        started = time.perf_counter()
        image = 0.0
        if cell.kind == "finetune":
            plain = replace(cell, init=SCRATCH)
            fine = finetune_settings(grid.study, plain, place, init=None, num_train=len(grid.train), device=device)
            finetune(fine.model_copy(update={**changes, "val_limit": 1, "val_every": 1e6}))
            batch = fine.batch_size * fine.grad_accum
            image = _seconds_to_score(grid, place)
        else:
            chosen = pretrain_settings(grid.study, cell, place, device=device)
            few = chosen.data.model_copy(update={"fraction": min(1.0, 32 / max(32, len(grid.train)))})
            pretrain(chosen.model_copy(update={**changes, "data": few}))
            batch = chosen.batch_size * chosen.grad_accum
        whole = time.perf_counter() - started
        rates = [row["images_per_second"] for row in read_metrics(place) if "images_per_second" in row][1:]
        step = median(batch / rate for rate in rates) if rates else whole / _TRIED
        return _Rate(max(0.0, whole - _TRIED * step), step, image, f"{_TRIED} steps tried here")


def _seconds_to_score(grid: Grid, run: Path) -> float:
    """Seconds per image."""
    index = scored_index(grid.study)[1]
    index = index.subset(range(min(8, len(index))))
    model = SiamDETR.load(run)
    started = time.perf_counter()
    evaluate(model, index, workers=0)
    return (time.perf_counter() - started) / len(index)
