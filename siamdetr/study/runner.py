"""Run a study: a grid of cells on disk, of which finished ones are never run again.

Studies with equal settings share a folder with its cells and splits. Each writes its report into a subfolder.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from siamdetr.data.index import DetectionIndex
from siamdetr.settings.resolve import resolve
from siamdetr.settings.training import FinetuneSettings
from siamdetr.study.cell import Cell
from siamdetr.study.grids import plan
from siamdetr.study.overlap import find_overlap, refuse_overlap
from siamdetr.study.run_cell import (
    CELLS,
    CellOutcome,
    CellResult,
    CellTask,
    cell_folder,
    read_result,
    run_cell,
    scored_index,
)
from siamdetr.study.settings import StudySettings, pretrain_settings
from siamdetr.study.study_folder import check_folder, splits_of, write_folder
from siamdetr.system.parallel import TaskRunner
from siamdetr.system.progress import Progress
from siamdetr.system.signals import Interrupted, SignalWatch
from siamdetr.training.open_datasets import FinetuneData, open_labelled, open_unlabelled
from siamdetr.training.pretrain_setup import stored_proposals

Told = Callable[[CellOutcome], None]


@dataclass(frozen=True)
class Grid:
    """A study's cells and their results.

    Attributes:
        folder: of the cells and splits; absolute.
        cells: all of this study, in running order.
        results: of the finished ones.
        notes: for the reader of the figures, such as a fraction that leaves a class without labels.
        train: the labelled images to train on.
        num_val: images that choose the best weights.
    """

    study: StudySettings
    folder: Path
    cells: tuple[Cell, ...]
    results: dict[Cell, CellResult]
    notes: tuple[str, ...]
    train: DetectionIndex
    num_val: int = 0

    @property
    def place(self) -> Path:
        """Folder of this study's report; other studies of `folder` have theirs beside it."""
        return self.folder / self.study.study

    @property
    def missing(self) -> list[Cell]:
        """Cells without a result."""
        return [cell for cell in self.cells if cell not in self.results]


def open_grid(study: StudySettings, folder: str | Path, *, write: bool = True) -> Grid:
    """Open the grid of a study in a folder, with the cells finished so far.

    Args:
        study: the settings.
        folder: of this and other studies with these settings; created if needed.
        write: False changes nothing on disk (a dry run).
    Raises:
        StudyError: the folder holds studies with other settings, or of images that have changed since; the text lists
            the differences. Or the unlabelled images hold some of those that choose or score the models.
        DataError: the data cannot be used.
    """
    folder = Path(folder).resolve()
    check_folder(study, folder)
    data = _labelled(study)
    if study.unlabelled and not study.allow_overlap:
        _refuse_overlap(study, folder, data)
    train = data.train
    cells = tuple(plan(study))
    results = {cell: found for cell in cells if (found := read_result(folder, cell)) is not None}
    splits, notes = splits_of(folder, train, cells)
    if write:
        write_folder(study, folder, splits)
    return Grid(study, folder, cells, results, notes, train, 0 if data.val is None else len(data.val))


def run_grid(
    grid: Grid, *, engine: TaskRunner, device: str = "auto", threads: int | None = None, progress: Progress, told: Told
) -> Grid:
    """Run the missing cells, pretraining first; returns the grid with the new results.

    After SIGINT or SIGTERM no further cell begins, and running cells save their state and end. A `SignalWatch` around
    the call tells which signal came.

    Args:
        grid: of `open_grid`.
        engine: where cells run.
        device: of the runs.
        threads: of PyTorch in each cell; None: its default.
        progress: called with (cells done, cells in all).
        told: called with each outcome as it comes.
    """
    results = dict(grid.results)
    missing = grid.missing
    failed: set[Cell] = set()
    progress(len(results), len(grid.cells))
    with SignalWatch() as watch:
        with suppress(Interrupted):
            _proposals(grid, missing, watch)
        for wave in _waves(missing):
            if watch.received is not None:
                break
            ready = [cell for cell in wave if cell.source not in failed]
            failed |= set(wave) - set(ready)
            tasks = [CellTask(cell, grid.study, grid.folder, len(grid.train), device, threads) for cell in ready]
            for outcome in engine.run(run_cell, tasks, stopped=lambda: watch.received is not None):
                told(outcome)
                if outcome.result is not None:
                    results[outcome.cell] = outcome.result
                elif outcome.interrupted:
                    watch.stop(signal.SIGTERM)  # a single process may have received it, or this one as well
                else:
                    failed.add(outcome.cell)
                progress(len(results), len(grid.cells))
    return replace(grid, results=results)


def _waves(missing: Sequence[Cell]) -> list[list[Cell]]:
    first = [cell for cell in missing if cell.kind == "pretrain"]
    return [wave for wave in (first, [cell for cell in missing if cell.kind != "pretrain"]) if wave]


def _proposals(grid: Grid, missing: Sequence[Cell], watch: SignalWatch) -> None:
    """Compute the proposals once for each kind, so that concurrent cells find them finished."""
    cells = [cell for cell in missing if cell.kind in ("pretrain", "cost")]
    kinds = {}
    for cell in cells:
        settings = pretrain_settings(grid.study, cell, cell_folder(grid.folder, cell))
        kinds[settings.of_method.proposals] = settings
    for settings in kinds.values():
        place = grid.folder / CELLS / "any"
        index = open_unlabelled(settings.data)
        stored_proposals(settings, place, index, lambda done, total: watch.raise_if_received())


def _refuse_overlap(study: StudySettings, folder: Path, data: FinetuneData) -> None:
    settings = pretrain_settings(study, Cell("pretrain", study.methods[0]), folder)
    unlabelled = open_unlabelled(settings.data)
    held_out = [scored_index(study)[1], *([] if data.val is None else [data.val])]
    refuse_overlap(find_overlap(unlabelled, held_out), len(unlabelled))


def _labelled(study: StudySettings) -> FinetuneData:
    """The whole labelled train part and the val part, as finetuning opens them."""
    flags: dict[str, Any] = {
        "data.paths": list(study.data),
        "data.format": study.format,
        "data.split": study.split,
        "data.val_split": study.val_split,
    }
    return open_labelled(resolve(FinetuneSettings, preset=study.preset, flags=flags))
