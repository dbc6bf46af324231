"""Runs a study: a grid of cells that is kept on disk, so that whatever is finished is never done again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from siamdetr.checkpoint import atomic_write, to_json
from siamdetr.data.files import Progress
from siamdetr.data.index import DetectionIndex
from siamdetr.parallel import Engine
from siamdetr.study.cells import Cell
from siamdetr.study.grids import plan
from siamdetr.study.settings import GROWING, StudySettings, pretrain_settings
from siamdetr.study.work import CELLS, CellOutcome, CellResult, CellTask, cell_folder, read_result, run_cell
from siamdetr.training.pretrain_setup import stored_proposals
from siamdetr.training.settings import FinetuneSettings, differences, resolve
from siamdetr.training.sources import FinetuneData, open_labelled, open_unlabelled

SETTINGS_FILE = "study.json"
SPLITS_FILE = "splits.json"

_log = logging.getLogger(__name__)
Told = Callable[[CellOutcome], None]


class StudyError(ValueError):
    """A study that cannot be run as asked; the text says why and what to do."""


@dataclass(frozen=True)
class Grid:
    """A study's cells and what is there of them.

    Attributes:
        cells: all, in the order of work.
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
    def missing(self) -> list[Cell]:
        """Cells that are still to be done."""
        return [cell for cell in self.cells if cell not in self.results]


def open_grid(study: StudySettings, folder: str | Path, *, write: bool = True) -> Grid:
    """The grid of a study in a folder, with what earlier calls have finished.

    Args:
        study: the settings.
        folder: of the study; made when it is not there.
        write: False changes nothing on disk (a dry run).
    Raises:
        StudyError: the folder holds a study with other settings; the text lists them.
        DataError: the data cannot be used.
    """
    folder = Path(folder).resolve()
    _check_settings(study, folder)
    data = _labelled(study)
    train = data.train
    cells = tuple(plan(study))
    results = {cell: found for cell in cells if (found := read_result(folder, cell)) is not None}
    splits, notes = _splits(study, train, cells)
    if write:
        text = json.dumps(_identity(study), indent=1)
        atomic_write(folder / SETTINGS_FILE, lambda file: file.write(text.encode()))
        atomic_write(folder / SPLITS_FILE, lambda file: file.write(json.dumps(splits, indent=1).encode()))
    return Grid(study, folder, cells, results, notes, train, 0 if data.val is None else len(data.val))


def run_grid(
    grid: Grid, *, engine: Engine, device: str = "auto", threads: int | None = None, progress: Progress, told: Told
) -> Grid:
    """Does what is missing: first what other cells start from, then the rest. Returns the grid with the new results.

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
    _proposals(grid, missing)
    failed: set[Cell] = set()
    for wave in _waves(missing):
        ready = [cell for cell in wave if cell.source not in failed]
        failed |= set(wave) - set(ready)
        tasks = [CellTask(cell, grid.study, grid.folder, len(grid.train), device, threads) for cell in ready]
        progress(len(results), len(grid.cells))
        for outcome in engine.run(run_cell, tasks):
            told(outcome)
            if outcome.interrupted:
                return _with(grid, results)
            if outcome.result is None:
                failed.add(outcome.cell)
            else:
                results[outcome.cell] = outcome.result
            progress(len(results), len(grid.cells))
    return _with(grid, results)


def _with(grid: Grid, results: dict[Cell, CellResult]) -> Grid:
    return replace(grid, results=results)


def _waves(missing: Sequence[Cell]) -> list[list[Cell]]:
    first = [cell for cell in missing if cell.kind == "pretrain"]
    return [wave for wave in (first, [cell for cell in missing if cell.kind != "pretrain"]) if wave]


def _proposals(grid: Grid, missing: Sequence[Cell]) -> None:
    """Computed here, once for each kind: cells that run at the same time find them done."""
    cells = [cell for cell in missing if cell.kind in ("pretrain", "cost")]
    kinds = {}
    for cell in cells:
        settings = pretrain_settings(grid.study, cell, cell_folder(grid.folder, cell))
        kinds[settings.of_method.proposals] = settings
    for settings in kinds.values():
        place = grid.folder / CELLS / "any"
        stored_proposals(settings, place, open_unlabelled(settings.data), lambda done, total: None)


def _labelled(study: StudySettings) -> FinetuneData:
    """The whole labelled train part and the val part, as finetuning opens them."""
    flags: dict[str, Any] = {
        "data.paths": list(study.data),
        "data.format": study.format,
        "data.split": study.split,
        "data.val_split": study.val_split,
    }
    return open_labelled(resolve(FinetuneSettings, preset=study.preset, flags=flags))


def _splits(
    study: StudySettings, train: DetectionIndex, cells: Sequence[Cell]
) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """The images of each fraction and seed, and which classes a fraction leaves without a label."""
    splits, notes = {}, []
    there = train.class_counts() > 0
    for fraction, seed in sorted({(cell.fraction, cell.seed) for cell in cells if cell.kind == "finetune"}):
        part = train.fraction(fraction, seed=seed)
        splits[f"{100 * fraction:g} %, seed {seed}"] = [part.relative_path(i) for i in range(len(part))]
        lost = [train.class_names[label] for label in np.flatnonzero(there & (part.class_counts() == 0))]
        if lost:
            notes.append(
                f"{100 * fraction:g} % of the labels with seed {seed} ({len(part)} images) leaves without a single label: {', '.join(lost)}. "
                "Nothing can learn them there; take a larger fraction or merge rare classes"
            )
    for note in notes:
        _log.warning("%s", note)
    return splits, tuple(notes)


def _identity(study: StudySettings) -> dict[str, Any]:
    """What must be the same in every call, with the preset's values: a preset that changes makes another study."""
    cell = Cell("pretrain", study.methods[0])
    base = to_json(pretrain_settings(study, cell, Path("cell")))
    fine = to_json(resolve(FinetuneSettings, preset=study.preset, flags={"data.paths": list(study.data)}))
    kept = {
        "siamese",
        "updetr",
        "detreg",
        "detector",
        "optimizer",
        "schedule",
        "batch_size",
        "steps",
        "epochs",
        "precision",
    }
    return {
        "study": to_json(study),
        "pretraining": {key: value for key, value in base.items() if key in kept},
        "finetuning": {
            key: value for key, value in fine.items() if key in kept | {"images", "losses", "ema", "freeze"}
        },
    }


def _check_settings(study: StudySettings, folder: Path) -> None:
    path = folder / SETTINGS_FILE
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise StudyError(f"{folder}: not empty, and not a study; give another folder with -o")
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise StudyError(f"{path}: damaged; give another folder with -o") from None
    ours = _identity(study)
    grown = {f"study.{name}" for name in GROWING}
    differing = [key for key in differences(ours, theirs) if key not in grown]
    if differing:
        lines = [f"  {key}: {_value(theirs, key)!r} there, {_value(ours, key)!r} now" for key in differing]
        raise StudyError(
            f"{folder}: holds a study with other settings:\n" + "\n".join(lines) + "\n"
            f"Give the same settings to go on with it, or another folder with -o. ({', '.join(GROWING)} may change: what is finished is kept.)"
        )


def _value(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
