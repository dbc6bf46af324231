"""Describe one of our files in plain values, for `siamdetr info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from siamdetr.api import load
from siamdetr.errors import CheckpointError
from siamdetr.files import BEST_MODEL, CONFIG_FILE, LAST_MODEL, kind_of
from siamdetr.proposals.store import ProposalStore
from siamdetr.training.checkpoints.checkpoint_file import newest_valid
from siamdetr.training.checkpoints.run_state import read_resumable, run_state
from siamdetr.training.run_folder import method_of


def describe(path: str | Path) -> dict[str, Any]:
    """Explain a run folder, model file, training checkpoint, exported model, bundle or proposal store.

    Each file is opened and checked, so that damage is an error here and not later.

    Raises:
        CheckpointError: nothing there, or none of our files; the text says what to do with it.
        DataError: a damaged proposal store.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "run" and (path / CONFIG_FILE).is_file():
        return _run(path)
    if kind == "checkpoint":
        return _checkpoint(path)
    if kind == "proposals" and path.is_file():
        return _proposals(path)
    if kind in ("run", "model", "onnx", "bundle", "engine"):
        return load(path).info
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    remedy = "; `siamdetr convert` reads official checkpoints" if kind == "torch" else ""
    raise CheckpointError(
        f"{path}: none of our files; expected a run folder, .safetensors, .ckpt, .onnx, a bundle or stored proposals{remedy}"
    )


def _run(folder: Path) -> dict[str, Any]:
    from siamdetr.drawing.html_page import read_metrics

    settings = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    rows = read_metrics(folder)
    last = {key: value for row in rows for key, value in row.items() if key in ("step", "loss", "val_ap", "val_ap50")}
    facts: dict[str, Any] = {
        "kind": f"run folder of {_stage(settings)}",
        "data": settings["data"]["paths"],
        "so far": last or "no metrics yet",
        **_resumable(folder),
    }
    for name in (BEST_MODEL, LAST_MODEL):
        if (folder / name).is_file():
            facts[name] = load(folder / name).info
            break
    return facts


def _resumable(folder: Path) -> dict[str, Any]:
    """Whether a run can continue, and from which checkpoint; reading it verifies every byte."""
    found = newest_valid(folder, read_resumable)
    if found is None:
        return {"to resume": False}
    path, content, problems = found
    return {"to resume": True, "checkpoint": "; ".join([*problems, f"{path.name}, step {content['step']}"])}


def _checkpoint(path: Path) -> dict[str, Any]:
    content = read_resumable(path)
    state = run_state(content, path)
    facts: dict[str, Any] = {
        "kind": f"training checkpoint of {state.stage}: resume from it with --resume {path}",
        "step": state.step,
        "processes": state.world_size,
        "PyTorch": state.torch,
        "tensors": len(content["state_dict"]),
        "settings": state.settings,
    }
    return facts | ({"changed on the way": list(state.changes)} if state.changes else {})


def _proposals(path: Path) -> dict[str, Any]:
    store = ProposalStore.open(path)
    sharpened, centred = store.fallback_counts()
    return {
        "kind": "stored region proposals for pretraining",
        "images": len(store),
        "boxes": store.num_boxes,
        "recipe": store.recipe,
        "found only after sharpening": sharpened,
        "centred box, nothing found": centred,
    }


def _stage(settings: dict[str, Any]) -> str:
    method = method_of(settings)
    return "finetuning" if method is None else f"pretraining ({method})"
