"""A bundle: the folder of an exported model with everything needed to use it.

model.onnx      the graph; its metadata repeats classes, preprocessing and lineage, so that the file alone is enough
model.engine    with --trt, the same built by TensorRT for one kind of GPU
manifest.json   inputs, outputs, classes, preprocessing, versions, digests, and the gate's measurements and verdict
labels.txt      one class name per line, in label order
infer.py        prediction with numpy, Pillow and onnxruntime only
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siamdetr.errors import ExportError
from siamdetr.files import MANIFEST_FILE, ONNX_FILE
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.system.atomic_file import atomic_text

METADATA_KEY = "siamdetr"  # the graph's metadata entry; a JSON object
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ModelCard:
    """The metadata of an exported file."""

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    preprocessing: PreprocessingSpec
    detector: dict[str, Any]  # the settings of the detector
    lineage: tuple[str, ...]
    metrics: dict[str, float]
    versions: dict[str, str]
    precision: str = "fp32"  # of the arithmetic
    threshold: float = 0.5  # the score from which a box counts
    threshold_from: str = ""  # how it was chosen; empty: nobody chose it
    outputs: tuple[str, ...] = ("boxes", "scores", "labels")
    options: dict[str, Any] = field(default_factory=dict)  # the options of the export

    @property
    def class_agnostic(self) -> bool:
        """Always False: a model that was only pretrained is not exported."""
        return False

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
            "precision": self.precision,
            "threshold": self.threshold,
            "threshold_from": self.threshold_from,
            "outputs": list(self.outputs),
            "options": self.options,
        }


def read_card(text: str | None, path: Path) -> ModelCard:
    """Read the model card from a graph's metadata.

    Args:
        text: the metadata entry `METADATA_KEY`; None if there is none.
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
            precision=values.get("precision", "fp32"),  # files of siamdetr 0.1.0 lack these five
            threshold=_score(values.get("threshold", 0.5)),
            threshold_from=str(values.get("threshold_from", "")),
            outputs=tuple(values.get("outputs", ("boxes", "scores", "labels"))),
            options=values.get("options", {}),
        )
    except (KeyError, TypeError, ValueError) as error:  # of which pydantic's and json's are some
        if isinstance(error, ExportError):
            raise
        raise ExportError(f"{path}: its metadata is damaged ({error}); export it again") from error


def _score(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"threshold: got {value!r}, expected a score from 0 to 1")
    return float(value)


def labels_text(class_names: Sequence[str]) -> str:
    """One class name per line, in label order.

    A line break inside a name becomes a space, because it would shift all names after it.
    """
    return "".join(f"{' '.join(name.splitlines())}\n" for name in class_names)


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


_INPUTS: dict[str, tuple[str, list[str | int], str]] = {
    "images": ("uint8", ["batch", 3, "height", "width"], "RGB, resized, one size a batch"),
    "original_sizes": ("int64", ["batch", 2], "height, width before resizing"),
    "valid_sizes": ("int64", ["batch", 2], "height, width of the resized image; right of and below it is padding"),
}
_OUTPUTS: dict[str, tuple[str, list[str | int], str]] = {
    "boxes": ("float32", ["batch", "k", 4], "x0, y0, x1, y1 in original pixels"),
    "scores": ("float32", ["batch", "k"], "0..1, in no order"),
    "labels": ("int64", ["batch", "k"], "0..C-1"),
    "logits": ("float32", ["batch", "q", "c"], "of every query, before sigmoid or softmax"),
    "fractions": ("float32", ["batch", "q", 4], "box of every query: cx, cy, w, h as fractions of the image"),
    "queries": ("int64", ["batch", "k"], "the query that each box came from"),
    "attention": ("float32", ["batch", "heads", "q", "h", "w"], "where queries look, in the last decoder layer"),
}


def describe_tensors(outputs: tuple[str, ...], *, takes_padding: bool) -> dict[str, Any]:
    """Inputs and outputs, for the manifest."""
    inputs = list(_INPUTS) if takes_padding else list(_INPUTS)[:2]

    def rows(names: list[str], table: dict[str, tuple[str, list[str | int], str]]) -> dict[str, Any]:
        return {name: dict(zip(("type", "shape", "what"), table[name], strict=True)) for name in names}

    return {"inputs": rows(inputs, _INPUTS), "outputs_described": rows(list(outputs), _OUTPUTS)}


def digest_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> tuple[ModelCard, dict[str, Any]]:
    """The card and the whole manifest of a bundle, after checking the digest of its graph.

    Raises:
        ExportError: no manifest, a damaged one, or a graph with another digest.
    """
    file = folder / MANIFEST_FILE
    if not file.is_file():
        raise ExportError(f"{file}: no such file; `siamdetr export MODEL -o {folder}` makes a bundle")
    text = file.read_text(encoding="utf-8")
    card = read_card(text, file)
    manifest: dict[str, Any] = json.loads(text)
    if manifest.get("sha256", {}).get(ONNX_FILE) != digest_file(folder / ONNX_FILE):
        raise ExportError(
            f"{folder / ONNX_FILE}: not the file that manifest.json vouches for (its SHA-256 differs); export it again"
        )
    return card, manifest


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest, atomically."""
    atomic_text(path, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder`, from which finished files are renamed into place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
    except OSError as error:
        raise ExportError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
