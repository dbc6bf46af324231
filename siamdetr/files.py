"""The names of all files that a run or a bundle holds, and the kind of file that a path is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

# A run folder.
CONFIG_FILE = "config.yaml"  # all settings of the run
METRICS_FILE = "metrics.csv"  # a row every few steps, a column a figure
LAST_CHECKPOINT = "last.ckpt"  # what the run resumes from
PREVIOUS_CHECKPOINT = "previous.ckpt"  # the one before it
BEST_MODEL = "best.safetensors"  # the weights of the best evaluation
LAST_MODEL = "last.safetensors"  # the weights of last.ckpt
EVALUATION_FILE = "evaluation.json"  # of the best weights: {"step", "metrics": {name: value}, "per_class": [row, …]}
PROPOSALS_FILE = "proposals.json"  # of pretraining: {"recipe", "rows": [[what, figure], …]}
REPORT_FILE = "report.html"
TENSORBOARD = "tensorboard"  # folder of events
PICTURES = "pictures"  # folder of jpg files, truth beside prediction, named by what they show
ATTENTION = "attention"  # folder of jpg files, the best boxes and where the decoder looked for them
DIAGNOSTICS = "diagnostics"  # of pretraining: sample-I.jpg, and matched-I-STEP-IOU.jpg of the same images over time

# A bundle.
ONNX_FILE = "model.onnx"
ENGINE_FILE = "model.engine"
MANIFEST_FILE = "manifest.json"
LABELS_FILE = "labels.txt"
INFER_FILE = "infer.py"

Kind = Literal[
    "run",  # a run folder, or a folder that holds its model files
    "bundle",  # a folder that `siamdetr export` wrote
    "model",  # .safetensors
    "checkpoint",  # .ckpt
    "onnx",
    "engine",
    "proposals",  # .arrow
    "json",
    "torch",  # .pt and .pth, which could run code
    "folder",  # of another kind
    "other",  # a file of another kind
    "missing",
]

_OF_SUFFIX: dict[str, Kind] = {
    ".safetensors": "model",
    ".ckpt": "checkpoint",
    ".onnx": "onnx",
    ".engine": "engine",
    ".arrow": "proposals",
    ".parquet": "proposals",
    ".json": "json",
    ".pt": "torch",
    ".pth": "torch",
}


def kind_of(path: str | Path) -> Kind:
    """What kind of file or folder a path is, by its name and, for a folder, by the names in it.

    No file is read, and a named file need not exist: opening it names its faults.
    """
    path = Path(path)
    if path.is_dir():
        if any((path / name).is_file() for name in (CONFIG_FILE, BEST_MODEL, LAST_MODEL)):
            return "run"
        return "bundle" if any((path / name).is_file() for name in (MANIFEST_FILE, ONNX_FILE)) else "folder"
    return _OF_SUFFIX.get(path.suffix.lower(), "other" if path.exists() else "missing")
