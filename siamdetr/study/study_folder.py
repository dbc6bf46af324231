"""Read and write study.json (shared settings) and splits.json (the images of each part)."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import StudyError
from siamdetr.pretext.registry import PRETEXTS
from siamdetr.settings.base import to_json
from siamdetr.settings.resolve import differences, resolve
from siamdetr.settings.training import FinetuneSettings
from siamdetr.study.cell import Cell
from siamdetr.study.settings import GROWING, StudySettings, pretrain_settings
from siamdetr.system.atomic_file import atomic_text

SETTINGS_FILE = "study.json"
SPLITS_FILE = "splits.json"

_log = logging.getLogger(__name__)


def check_folder(study: StudySettings, folder: Path) -> None:
    """Check that a folder is new, or belongs to studies with the same settings.

    Raises:
        StudyError: it is not; the text lists what differs.
    """
    path = folder / SETTINGS_FILE
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise StudyError(f"{folder}: not empty, and not a study; give another folder with -o")
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        # The first form of the file was of one study, with its name and extent.
        theirs["study"] = _shared(theirs["study"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StudyError(f"{path}: damaged; give another folder with -o") from None
    ours = _identity(study)
    differing = differences(ours, theirs)
    if differing:
        lines = [f"  {key}: {_value(theirs, key)!r} there, {_value(ours, key)!r} now" for key in differing]
        raise StudyError(
            f"{folder}: holds studies with other settings:\n" + "\n".join(lines) + "\n"
            f"Give the same settings to share its cells, or another folder with -o. (The study and {', '.join(GROWING)} may change: "
            "what is finished is kept.)"
        )


def splits_of(
    folder: Path, train: DetectionIndex, cells: Sequence[Cell]
) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """The images of each fraction and seed, and the classes that a fraction leaves without labels.

    Raises:
        StudyError: an earlier split had other images, so the data has changed.
    """
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
    return _with_earlier(folder, splits), tuple(notes)


def write_folder(study: StudySettings, folder: Path, splits: dict[str, list[str]]) -> None:
    """Write study.json and splits.json; the folder is created."""
    text = json.dumps(_identity(study), indent=1)
    atomic_text(folder / SETTINGS_FILE, text)
    atomic_text(folder / SPLITS_FILE, json.dumps(splits, indent=1))


def _with_earlier(folder: Path, splits: dict[str, list[str]]) -> dict[str, list[str]]:
    path = folder / SPLITS_FILE
    if not path.exists():
        return splits
    try:
        earlier: dict[str, list[str]] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise StudyError(
            f"{path}: damaged; delete it, and the splits of each study are written when it is run"
        ) from None
    for name, images in earlier.items():
        if splits.get(name, images) != images:
            raise StudyError(
                f"{path}: has other images for {name} than the data now gives ({len(images)} there, {len(splits[name])} now). "
                "The labelled images have changed, and new runs would not compare with finished ones; give another folder with -o"
            )
    return earlier | splits


def _identity(study: StudySettings) -> dict[str, Any]:
    """The settings that all studies of a folder share, including the preset's values."""
    cell = Cell("pretrain", study.methods[0])
    base = to_json(pretrain_settings(study, cell, Path("cell")))
    fine = to_json(resolve(FinetuneSettings, preset=study.preset, flags={"data.paths": list(study.data)}))
    kept = {
        *PRETEXTS,
        "detector",
        "optimizer",
        "schedule",
        "batch_size",
        "steps",
        "epochs",
        "precision",
    }
    return {
        "study": _shared(to_json(study)),
        "pretraining": {key: value for key, value in base.items() if key in kept},
        "finetuning": {
            key: value for key, value in fine.items() if key in kept | {"images", "losses", "ema", "freeze"}
        },
    }


def _shared(study: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that only choose cells."""
    return {key: value for key, value in study.items() if key not in ("study", "allow_overlap", *GROWING)}


def _value(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
