"""Settings of a run, and how they come about: preset, then YAML file, then flags, then `--set key=value`; later wins.

This file imports no torch: the command line reads it to explain itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from siamdetr.config import (
    DenoisingSettings,
    DetectorSettings,
    DETRegSettings,
    LossSettings,
    Method,
    Settings,
    SiameseSettings,
    UPDETRSettings,
)
from siamdetr.presets import preset_values

Precision = Literal["fp32", "bf16", "fp16"]
Freeze = Literal["none", "backbone", "body"]
Logger = Literal["wandb", "mlflow"]


class SettingsError(ValueError):
    """A setting that does not exist or does not hold; the text says which, where it came from and what to do."""


class DataSettings(Settings):
    """Where the images are, and how they are read."""

    paths: tuple[str, ...] = Field(..., min_length=1, description="data sets or folders of images")
    format: str = Field("auto", description="auto, coco, voc, yolo or folder")
    split: str | None = Field(None, description="the part to train on; None: the data set's train part, else all")
    val_paths: tuple[str, ...] = Field((), description="finetuning: a data set to validate on; empty: `paths`")
    val_split: str | None = Field(None, description="finetuning: the part to validate on; None: its val part")
    fraction: float = Field(1.0, gt=0, le=1, description="of the labelled images, chosen by `seed`")
    strict: bool = Field(False, description="refuse a data set with problems instead of skipping them")
    proposals: tuple[str, ...] = Field(
        (),
        description="pretraining: files of proposals (`siamdetr proposals`), shards included; empty: computed, and kept beside the run",
    )


class ImageSettings(Settings):
    """Size and augmentation of the images a detector is finetuned on."""

    size: int | tuple[int, int] = Field(800, description="shortest side in pixels, or a fixed (height, width)")
    max_size: int = Field(1333, ge=16, description="longest side, pixels, where `size` is a shortest side")
    augment: Literal["none", "flip", "detr"] = Field(
        "detr", description="detr: flip, and either many scales or a crop between two resizes; flip: flip only"
    )


class OptimizerSettings(Settings):
    """AdamW in groups: the backbone with its own rate, and all the rest."""

    lr: float = Field(1e-4, gt=0)
    lr_backbone: float = Field(1e-5, ge=0)
    sampling_factor: float = Field(
        1.0, gt=0, description="deformable: times the rate, for the layers that say where to look (official: .1)"
    )
    weight_decay: float = Field(1e-4, ge=0)
    clip: float = Field(0.1, ge=0, description="largest norm of the gradient; 0: no clipping")


class ScheduleSettings(Settings):
    """The learning rate over the run, as a factor of `optimizer.lr`; `drop_at` and `warmup` are fractions of the run."""

    name: Literal["step", "cosine", "onecycle", "constant"] = "step"
    warmup: float = Field(
        0.0, ge=0, lt=1, description="share of the run that rises to the full rate; onecycle: 0 means .3"
    )
    drop_at: float = Field(0.8, gt=0, le=1, description="step: where the rate falls to a tenth")
    final: float = Field(0.01, ge=0, le=1, description="cosine, onecycle: the factor at the end")


class RunSettings(Settings):
    """What both stages share."""

    detector: DetectorSettings = DetectorSettings()
    data: DataSettings
    backbone_weights: str = Field("imagenet", description="imagenet, none, or a file of weights")
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    epochs: float | None = Field(None, gt=0, description="passes over the data; or `steps`")
    steps: int | None = Field(None, ge=1, description="optimiser steps; wins over `epochs`")
    batch_size: int = Field(4, ge=1, description="images a process and a step (pretraining: pairs of views)")
    grad_accum: int = Field(1, ge=1, description="batches whose gradients make one step")
    precision: Precision = "fp32"
    seed: int = Field(0, ge=0)
    deterministic: bool = Field(False, description="only deterministic kernels, at some cost of speed")
    workers: int = Field(2, ge=0, description="processes that load images")
    worker_timeout: int = Field(300, ge=0, description="seconds after which a hung worker stops the run; 0: never")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    devices: int = Field(
        1, ge=1, description="processes on this machine, one device each (torchrun and SLURM say it themselves)"
    )
    num_nodes: int = Field(1, ge=1, description="machines")
    log_every: int = Field(20, ge=1, description="steps between two rows of metrics.csv")
    checkpoint_every: int = Field(500, ge=1, description="steps between two writings of last.ckpt")
    loggers: tuple[Logger, ...] = Field((), description="besides metrics.csv and TensorBoard, which are always written")
    output: str | None = Field(None, description="the run folder; None: runs/<stage>-<n>")

    @model_validator(mode="after")
    def _one_length(self) -> RunSettings:
        if self.epochs is None and self.steps is None:
            raise ValueError("give the length of the run: 'epochs' or 'steps'")
        return self


class PretrainSettings(RunSettings):
    """Self-supervised pretraining: `siamdetr train`, `siamdetr pretrain`."""

    method: Method = Field("siamese", description="siamese, updetr or detreg; its settings stand under its name")
    siamese: SiameseSettings = SiameseSettings()
    updetr: UPDETRSettings = UPDETRSettings()
    detreg: DETRegSettings = DETRegSettings()
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the averaged weights; 0: none")

    @property
    def of_method(self) -> SiameseSettings | UPDETRSettings | DETRegSettings:
        """The settings of the method."""
        if self.method == "siamese":
            return self.siamese
        return self.updetr if self.method == "updetr" else self.detreg


class FinetuneSettings(RunSettings):
    """Supervised training of a detector: `siamdetr finetune`."""

    images: ImageSettings = ImageSettings()
    losses: LossSettings = LossSettings()
    denoising: DenoisingSettings = DenoisingSettings()
    init: str | None = Field(None, description="a run folder or model file to start from")
    freeze: Freeze = Field("none", description="backbone: only the backbone; body: all but the class and box heads")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of the averaged weights; 0: none. They are what is scored and saved"
    )
    val_every: float = Field(1.0, gt=0, description="epochs between two evaluations")
    val_limit: int | None = Field(None, ge=1, description="evaluate on the first N images only")
    early_stopping: int | None = Field(None, ge=1, description="stop after N evaluations without a better AP")
    overfit_batch: bool = Field(
        False, description="train on the first batch alone, without augmentation: the loss must fall"
    )


RunSettingsType = TypeVar("RunSettingsType", bound=RunSettings)


def resolve(
    cls: type[RunSettingsType],
    *,
    preset: str | None = None,
    file: str | Path | None = None,
    flags: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> RunSettingsType:
    """The settings of a run: preset ← YAML file ← flags ← `--set`, later wins.

    Args:
        cls: PretrainSettings or FinetuneSettings.
        preset: a name of `siamdetr.presets`; None: the class's own defaults.
        file: a YAML file of nested settings, such as a run's config.yaml.
        flags: dotted keys, such as {"optimizer.lr": 1e-4}; None values are flags not given and are left out.
        assignments: "optimizer.clip=0.1" texts; the value is read as YAML.
    Raises:
        SettingsError: an unknown preset or key (with the nearest one), or a value that does not hold.
    """
    try:
        values = preset_values(preset, stage=stage_of(cls)) if preset is not None else {}
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if file is not None:
        values = _merged(values, _read_yaml(Path(file), cls))
    for key, value in (flags or {}).items():
        if value is not None:
            _assign(values, key, value, cls)
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"--set got '{text}', expected KEY=VALUE, such as optimizer.clip=0.1")
        _assign(values, key.strip(), _scalar(value), cls)
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise SettingsError(explain(error)) from None


def stage_of(cls: type[RunSettings]) -> Literal["pretrain", "finetune"]:
    """Which stage a settings class belongs to."""
    return "pretrain" if issubclass(cls, PretrainSettings) else "finetune"


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two nested mappings."""
    found: list[str] = []
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}")
    return found


def _leaves(cls: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of a settings class, branches included."""
    keys: list[str] = []
    for name, field in cls.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _leaves(field.annotation, f"{prefix}{name}.")
    return keys


def _check_key(key: str, cls: type[BaseModel], source: str) -> None:
    known = _leaves(cls)
    if key in known:
        return
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:  # perhaps the branch is missing: lr for optimizer.lr
        names = [name.rpartition(".")[2] for name in known]
        last = difflib.get_close_matches(key.rpartition(".")[2], names, n=1, cutoff=0.6)
        near = [name for name in known if last and name.rpartition(".")[2] == last[0]][:1]
    hint = f"; did you mean '{near[0]}'?" if near else f"; there are: {', '.join(cls.model_fields)}"
    raise SettingsError(f"{source}no such setting '{key}'{hint}")


def _assign(values: dict[str, Any], key: str, value: Any, cls: type[BaseModel]) -> None:
    _check_key(key, cls, "")
    *branches, leaf = key.split(".")
    for branch in branches:
        values = values.setdefault(branch, {})
    values[leaf] = value


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _scalar(text: str) -> Any:
    """A value as YAML reads it; besides, 1e-4 is a number here (YAML 1.1 takes it for a text)."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _read_yaml(path: Path, cls: type[BaseModel]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such settings file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: got a {type(values).__name__}, expected settings, such as 'batch_size: 4'")
    for key in _dotted(values):
        _check_key(key, cls, f"{path}: ")
    return values


def _dotted(values: Mapping[Any, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in values.items():
        keys += _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"]
    return keys


def explain(error: ValidationError) -> str:
    """What pydantic found wrong, in a line each for people."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("function-"))
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            lines.append(f"setting '{where}' is missing")
        elif problem["type"] == "value_error":
            lines.append(f"{where}: {message}" if where else message)
        else:
            lines.append(f"setting '{where}' got {problem['input']!r}: {message[:1].lower()}{message[1:]}")
    return "\n".join(lines)
