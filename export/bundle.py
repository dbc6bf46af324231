"""A bundle: the folder that holds an exported model and all that is needed to use it, and what its files say.

model.onnx      the graph; its metadata repeats classes, preprocessing and lineage, so that the file alone is enough
manifest.json   inputs, outputs, classes, preprocessing, versions, and what was measured against PyTorch
labels.txt      a class name a line, in label order
infer.py        prediction with numpy, Pillow and onnxruntime only
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from siamdetr.preprocessing import PreprocessingSpec

ONNX_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
LABELS_FILE = "labels.txt"
INFER_FILE = "infer.py"
METADATA_KEY = "siamdetr"  # the graph's metadata entry; a JSON object
FORMAT_VERSION = 1


class ExportError(ValueError):
    """An export that failed, or an exported file that cannot be used; the text says which, why and what to do."""


@dataclass(frozen=True)
class ModelCard:
    """What an exported file says about itself."""

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    preprocessing: PreprocessingSpec
    detector: dict[str, Any]  # the settings of the detector
    lineage: tuple[str, ...]
    metrics: dict[str, float]
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "format": "siamdetr-onnx",
            "format_version": FORMAT_VERSION,
            "class_names": list(self.class_names),
            "category_ids": list(self.category_ids),
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "detector": self.detector,
            "lineage": list(self.lineage),
            "metrics": self.metrics,
            "versions": self.versions,
        }


def read_card(text: str | None, path: Path) -> ModelCard:
    """The card that a graph's metadata holds.

    Args:
        text: the metadata entry `METADATA_KEY`; None when there is none.
        path: the file, for the error.
    Raises:
        ExportError: there is none, it is damaged, or of a newer version.
    """
    if text is None:
        raise ExportError(
            f"{path}: an ONNX file, but not one that siamdetr exported (no metadata '{METADATA_KEY}'); "
            "make it with `siamdetr export`"
        )
    try:
        values = json.loads(text)
        if values["format_version"] > FORMAT_VERSION:
            raise ExportError(
                f"{path}: format version {values['format_version']}, but this siamdetr reads up to {FORMAT_VERSION}; update it"
            )
        return ModelCard(
            class_names=tuple(values["class_names"]),
            category_ids=tuple(values["category_ids"]),
            preprocessing=PreprocessingSpec.model_validate(values["preprocessing"]),
            detector=values["detector"],
            lineage=tuple(values["lineage"]),
            metrics=values["metrics"],
            versions=values["versions"],
        )
    except (KeyError, TypeError, json.JSONDecodeError, ValidationError) as error:
        raise ExportError(f"{path}: its metadata is damaged ({error}); export it again") from error


def find_onnx(path: str | Path) -> Path:
    """The ONNX file that `path` means: itself, or of a bundle folder its model.onnx.

    Raises:
        ExportError: it is not there.
    """
    path = Path(path)
    file = path / ONNX_FILE if path.is_dir() else path
    if not file.is_file():
        rejected = file.with_name(file.name + ".rejected")
        why = f"; {rejected.name} beside it failed its check against PyTorch" if rejected.exists() else ""
        raise ExportError(f"{file}: no such file{why}; make it with `siamdetr export`")
    return file
