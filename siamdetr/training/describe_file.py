"""What one of our files is, in plain values: the body of `siamdetr info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from siamdetr.api import MANIFEST_FILE, ONNX_FILE, load
from siamdetr.errors import CheckpointError
from siamdetr.proposals.store import ProposalStore

CONFIG_FILE = "config.yaml"


def describe(path: str | Path) -> dict[str, Any]:
    """Explain a run folder, model file, training checkpoint, exported model, bundle or proposal store.

    Opening checks: a damaged file is an error here and not a surprise later.

    Raises:
        CheckpointError: nothing there, or none of our files; the text says what to do with it.
        DataError: a damaged proposal store.
    """
    path = Path(path)
    if (path / CONFIG_FILE).is_file():
        return _run(path)
    if path.suffix == ".ckpt":
        return _checkpoint(path)
    if path.suffix in (".arrow", ".parquet") and path.is_file():
        return _proposals(path)
    if path.suffix in (".safetensors", ".onnx") or (path / MANIFEST_FILE).is_file() or (path / ONNX_FILE).is_file():
        return load(path).info
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    remedy = "; `siamdetr convert` reads official checkpoints" if path.suffix in (".pth", ".pt") else ""
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
        "to resume": (folder / "last.ckpt").is_file(),
    }
    for name in ("best.safetensors", "last.safetensors"):
        if (folder / name).is_file():
            facts[name] = load(folder / name).info
            break
    return facts


def _checkpoint(path: Path) -> dict[str, Any]:
    from siamdetr.training.checkpoint_io import STATE, read_checkpoint  # Lightning takes seconds to import

    content = read_checkpoint(path)
    state = content[STATE]
    return {
        "kind": f"training checkpoint of {state['stage']}: resume from it with --resume {path}",
        "step": state["step"],
        "processes": state["world_size"],
        "PyTorch": state["torch"],
        "tensors": len(content["state_dict"]),
        "settings": state["settings"],
    }


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
    return f"pretraining ({settings['method']})" if "method" in settings else "finetuning"
