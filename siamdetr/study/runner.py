"""Runs a study: a grid of cells that is kept on disk, so that whatever is finished is never done again.

Studies of the same settings share a folder: its cells, its splits. Each has a folder of its own in it for what it answers.
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
from siamdetr.study.run_cell import CELLS, CellOutcome, CellResult, CellTask, cell_folder, read_result, run_cell
from siamdetr.study.settings import StudySettings, pretrain_settings
from siamdetr.study.study_folder import check_folder, splits_of, write_folder
from siamdetr.system.parallel import Engine
from siamdetr.system.progress import Progress
from siamdetr.system.signals import Interrupted, SignalWatch
from siamdetr.training.open_datasets import FinetuneData, open_labelled, open_unlabelled
from siamdetr.training.pretrain_setup import stored_proposals

Told = Callable[[CellOutcome], None]


@dataclass(frozen=True)
class Grid:
    """A study's cells and what is there of them.

    Attributes:
        folder: of the cells and splits; absolute.
        cells: all of this study, in the order of work.
        results: of the finished ones.
        notes: what a reader of the figures has to know, such as a fraction that leaves a class without a label.
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
        """Folder of what this study answers; other studies of `folder` have theirs beside it."""
        return self.folder / self.study.study

    @property
    def missing(self) -> list[Cell]:
        """Cells that are still to be done."""
        return [cell for cell in self.cells if cell not in self.results]


def open_grid(study: StudySettings, folder: str | Path, *, write: bool = True) -> Grid:
    """The grid of a study in a folder, with what earlier calls have finished, of this study or of others that need the same cells.

    Args:
        study: the settings.
        folder: of this and other studies with these settings; made when it is not there.
        write: False changes nothing on disk (a dry run).
    Raises:
        StudyError: the folder holds studies with other settings, or of images that have changed since; the text lists the differences.
        DataError: the data cannot be used.
    """
    folder = Path(folder).resolve()
    check_folder(study, folder)
    data = _labelled(study)
    train = data.train
    cells = tuple(plan(study))
    results = {cell: found for cell in cells if (found := read_result(folder, cell)) is not None}
    splits, notes = splits_of(folder, train, cells)
    if write:
        write_folder(study, folder, splits)
    return Grid(study, folder, cells, results, notes, train, 0 if data.val is None else len(data.val))


def run_grid(
    grid: Grid, *, engine: Engine, device: str = "auto", threads: int | None = None, progress: Progress, told: Told
) -> Grid:
    """Does what is missing: first what other cells start from, then the rest. Returns the grid with the new results.

    SIGINT and SIGTERM end it early: no cell begins any more, and those that run save what they have and end. A `SignalWatch` around the call
    tells which came.

    Args:
        grid: of `open_grid`.
        engine: where cells run.
        device: of the runs.
        threads: PyTorch's, for each cell; None: as it likes.
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
                    watch.stop(signal.SIGTERM)  # one process alone got it, or this one as well
                else:
                    failed.add(outcome.cell)
                progress(len(results), len(grid.cells))
    return replace(grid, results=results)


def _waves(missing: Sequence[Cell]) -> list[list[Cell]]:
    first = [cell for cell in missing if cell.kind == "pretrain"]
    return [wave for wave in (first, [cell for cell in missing if cell.kind != "pretrain"]) if wave]


def _proposals(grid: Grid, missing: Sequence[Cell], watch: SignalWatch) -> None:
    """Computed here, once for each kind: cells that run at the same time find them done."""
    cells = [cell for cell in missing if cell.kind in ("pretrain", "cost")]
    kinds = {}
    for cell in cells:
        settings = pretrain_settings(grid.study, cell, cell_folder(grid.folder, cell))
        kinds[settings.of_method.proposals] = settings
    for settings in kinds.values():
        place = grid.folder / CELLS / "any"
        index = open_unlabelled(settings.data)
        stored_proposals(settings, place, index, lambda done, total: watch.raise_if_received())


def _labelled(study: StudySettings) -> FinetuneData:
    """The whole labelled train part and the val part, as finetuning opens them."""
    flags: dict[str, Any] = {
        "data.paths": list(study.data),
        "data.format": study.format,
        "data.split": study.split,
        "data.val_split": study.val_split,
    }
    return open_labelled(resolve(FinetuneSettings, preset=study.preset, flags=flags))
