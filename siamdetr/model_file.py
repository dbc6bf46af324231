"""Model files: safetensors with JSON metadata, atomic, checked by SHA-256, never unpickled.

A model file holds the detector's tensors and, in its metadata, all that is needed to use them: format version, detector
settings, class names, preprocessing, lineage and metrics. A digest over tensors and metadata is verified on loading,
because safetensors has no checksum of its own: a flipped byte would otherwise give silently wrong boxes.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch
from torch import Tensor

from siamdetr.errors import CheckpointError
from siamdetr.files import BEST_MODEL, LAST_MODEL, kind_of
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.models.backbone.normalization import backbone_normalization
from siamdetr.models.detector import Detector
from siamdetr.settings.base import Settings
from siamdetr.settings.detector import DetectorSettings
from siamdetr.system.atomic_file import atomic_write

_log = logging.getLogger(__name__)
FORMAT = "siamdetr-model"
FORMAT_VERSION = 1
_LARGEST_OPTION = 1024  # of a setting that shapes no tensor, such as a stride


class ModelMetadata(Settings):
    """The metadata of a model file, besides the detector's settings."""

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...] = ()  # the data set's own ids in label order
    preprocessing: PreprocessingSpec
    lineage: tuple[str, ...] = ()  # oldest first: "pretext: siamese on DATA, 300 steps"
    metrics: dict[str, float] = Field(default_factory=dict)
    threshold: float = Field(0.5, ge=0, le=1, allow_inf_nan=False, description="from which a box counts")
    threshold_from: str = ""  # "best F1 on DATA (val, 100 images)"; empty: nobody chose the threshold
    class_agnostic: bool = False  # it was pretrained and not finetuned: its one class is any object

    @model_validator(mode="before")
    @classmethod
    def _pretrained_files_of_old(cls, values: Any) -> Any:
        """Set the flag of an older file: pretrained if its class is "object" and its last stage a pretext."""
        if isinstance(values, dict) and "class_agnostic" not in values:
            lineage = tuple(values.get("lineage", ()))
            pretrained = bool(lineage) and str(lineage[-1]).startswith("pretext:")
            return {**values, "class_agnostic": pretrained and tuple(values.get("class_names", ())) == ("object",)}
        return values


def digest(tree: Any) -> str:
    """SHA-256 over nested dicts, lists, tensors, numbers and texts: names, types, shapes and bytes."""
    sha = hashlib.sha256()
    _feed(sha, tree)
    return sha.hexdigest()


def save_model(path: str | Path, detector: Detector, metadata: ModelMetadata) -> None:
    """Write a detector as a model file, atomically.

    Raises:
        CheckpointError: the name does not end in .safetensors, or the disk is full; an old file stays.
        ValueError: the number of class names is not the detector's.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: a model file ends in .safetensors, got '{path.suffix}'; name it so")
    if len(metadata.class_names) != detector.settings.num_classes:
        raise ValueError(
            f"{path}: got {len(metadata.class_names)} class names for a detector of {detector.settings.num_classes} classes"
        )
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in detector.state_dict().items()}
    texts = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "detector": detector.settings.model_dump_json(),
        "model": metadata.model_dump_json(),
    }
    texts["sha256"] = digest({"tensors": tensors, "texts": texts})
    atomic_write(path, lambda file: file.write(safetensors_torch.save(tensors, texts)))


def load_model(path: str | Path) -> tuple[Detector, ModelMetadata]:
    """Read a model file, or the best one of a run folder. The detector is on the CPU, in evaluation mode.

    Raises:
        CheckpointError: not there, not ours, truncated, damaged, or of a newer version. Nothing is ever unpickled.
    """
    path = find_model_file(path)
    texts, tensors = _read(path)
    try:
        settings = DetectorSettings.model_validate_json(texts["detector"])
        metadata = ModelMetadata.model_validate_json(texts["model"])
        _check_claims(settings, tensors)
        detector = Detector(settings)
        detector.load_state_dict(tensors, strict=True)
    except (ValidationError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: whole, but it does not fit this version of siamdetr: {' '.join(str(error).split())[:500]}"
        ) from error
    _say_of_normalization(path, settings, metadata)
    return detector.eval(), metadata


def store_threshold(path: str | Path, threshold: float, source: str) -> Path:
    """Write a model file again with another threshold and nothing else changed.

    Args:
        path: a model file or a run folder.
        threshold: the score from which a box counts, in [0, 1].
        source: how it was chosen, for people.
    Returns:
        The file that was written.
    Raises:
        CheckpointError: as of `load_model` and `save_model`.
    """
    file = find_model_file(path)
    detector, metadata = load_model(file)
    save_model(file, detector, metadata.model_copy(update={"threshold": threshold, "threshold_from": source}))
    return file


def _check_claims(settings: DetectorSettings, tensors: Mapping[str, Tensor]) -> None:
    """Check that the settings fit the tensors, before a detector of them is built.

    Building one that is refused afterwards would take gigabytes or hours.

    Raises:
        ValueError: a size or a number of layers is larger than the tensors allow.
    """
    elements = sum(tensor.numel() for tensor in tensors.values())
    for name, value in settings.model_dump().items():
        most = len(tensors) if name.endswith("_layers") else elements
        if isinstance(value, int) and not isinstance(value, bool) and value > max(most, _LARGEST_OPTION):
            raise ValueError(f"{name} is {value:,}, but the file holds {len(tensors)} tensors of {elements:,} values")


@functools.cache
def _say_once(text: str) -> None:
    _log.warning("%s", text)


def _say_of_normalization(path: Path, settings: DetectorSettings, metadata: ModelMetadata) -> None:
    """Warn, once per process, of images that are normalised otherwise than the backbone's weights expect."""
    own, expected = metadata.preprocessing.normalization, backbone_normalization(settings.backbone)
    if own != expected:
        _say_once(
            f"{path}: its images are normalised with {own}, the pretrained weights of {settings.backbone} expect {expected}. "
            "The file keeps its own, with which it was trained; a run that starts from backbone weights takes the expected ones"
        )


def read_metadata(path: str | Path) -> tuple[DetectorSettings, ModelMetadata]:
    """Settings and metadata of a model file or run folder, without its tensors and without the digest."""
    path = find_model_file(path)
    with _opened(path) as file:
        texts = _ours(file.metadata(), path)
    return DetectorSettings.model_validate_json(texts["detector"]), ModelMetadata.model_validate_json(texts["model"])


def find_model_file(path: str | Path) -> Path:
    """The model file that `path` means: the file itself, or the best one of a run folder.

    In a run folder it is best.safetensors, else last.safetensors.

    Raises:
        CheckpointError: nothing there, or a file of another kind; the text says what to do with it.
    """
    path = Path(path)
    if path.is_dir():
        for name in (BEST_MODEL, LAST_MODEL):
            if (path / name).is_file():
                return path / name
        raise CheckpointError(f"{path}: a folder without {BEST_MODEL} or {LAST_MODEL}; is it a run that has finished?")
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if kind_of(path) == "model":
        return path
    remedy = {
        "checkpoint": "a checkpoint to resume training from; the model lies beside it, give the run folder",
        "onnx": "an exported model; siamdetr.load opens it for prediction, but it cannot be trained on",
        "torch": "a PyTorch file, which could run code; `siamdetr convert` reads official ones safely",
    }.get(kind_of(path), "not a model of ours")
    raise CheckpointError(f"{path}: {remedy} (expected a run folder or a .safetensors file)")


def _feed(sha: Any, tree: Any) -> None:
    if isinstance(tree, Tensor):
        tensor = tree.detach().cpu().contiguous()
        sha.update(f"T{tensor.dtype}{tuple(tensor.shape)}".encode())
        if tensor.numel():
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy())
    elif isinstance(tree, Mapping):
        sha.update(f"D{len(tree)}".encode())
        for key in sorted(tree, key=lambda key: (str(type(key)), key)):
            sha.update(f"K{key!r}".encode())
            _feed(sha, tree[key])
    elif isinstance(tree, list | tuple):
        sha.update(f"L{len(tree)}".encode())
        for item in tree:
            _feed(sha, item)
    else:
        sha.update(f"V{tree!r}".encode())


def _opened(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: truncated, damaged, or not a safetensors file ({error}); fetch or make it again"
        ) from error


def _ours(texts: Mapping[str, str] | None, path: Path) -> Mapping[str, str]:
    if not texts or texts.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a model of siamdetr (its metadata does not say '{FORMAT}'); "
            "`siamdetr convert` reads official checkpoints"
        )
    version = texts.get("format_version", "")
    if not version.isdigit() or int(version) > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {version or 'missing'}, but this siamdetr reads up to {FORMAT_VERSION}; update siamdetr"
        )
    missing = [key for key in ("detector", "model", "sha256") if key not in texts]
    if missing:
        raise CheckpointError(f"{path}: damaged: the metadata lacks {', '.join(missing)}; fetch or make it again")
    return texts


def _read(path: Path) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    with _opened(path) as file:
        texts = _ours(file.metadata(), path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    expected = texts["sha256"]
    found = digest({"tensors": tensors, "texts": {key: text for key, text in texts.items() if key != "sha256"}})
    if found != expected:
        raise CheckpointError(
            f"{path}: damaged: SHA-256 of its contents is {found[:12]}…, expected {expected[:12]}…; fetch or make it again"
        )
    return texts, tensors
