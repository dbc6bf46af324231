"""Settings of a study, and the settings of its runs that follow from them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from siamdetr.pretext.registry import PRETEXTS
from siamdetr.pretext.run_settings import PretrainSettings, check_method
from siamdetr.settings.base import Settings
from siamdetr.settings.resolve import resolve
from siamdetr.settings.training import FinetuneSettings
from siamdetr.study.cell import Cell
from siamdetr.training.initial_weights import read_start

StudyName = Literal[
    "data-efficiency", "initialization", "sensitivity", "ablation", "cost", "convergence", "qualitative"
]

# `--fast` overrides the preset by these: the whole path in about two minutes on two cores, without a claim.
_FAST_DETECTOR: dict[str, Any] = {
    "detector.variant": "conditional",
    "detector.backbone": "test_resnet.r160_in1k",
    "detector.stride": 32,
    "detector.levels": 1,
    "detector.refine": False,
    "detector.two_stage": False,
    "detector.encoder_points": 4,  # as of every detector that is not deformable
    "detector.num_queries": 20,
    "detector.dim": 32,
    "detector.heads": 2,
    "detector.encoder_layers": 1,
    "detector.decoder_layers": 1,
    "detector.feedforward": 32,
    "backbone_weights": "none",
    "batch_size": 2,
    "workers": 0,
    "log_every": 1,
    "checkpoint_every": 1000,
}
_FAST_METHOD: dict[str, Any] = {"size": 96, "num_regions": 5, "crop_size": 32}
_FAST_FINETUNE: dict[str, Any] = {"images.size": 96, "images.max_size": 160, "images.augment": "flip"}


# Settings that each cell decides, and the option to use instead: an assignment would undo the comparison.
_OWN: dict[str, str] = {
    "seed": "give --seeds",
    "steps": "give --pretrain-steps or --finetune-steps",
    "data.fraction": "give --fractions",
    "method": "give --methods",
    "val_every": "give --evaluations",
    "init": "it is the pretrained run, or none",
    "output": "give -o",
}


class StudySettings(Settings):
    """Everything that a study's figures depend on."""

    study: StudyName
    data: tuple[str, ...] = Field(..., min_length=1, description="labelled data sets")
    unlabelled: tuple[str, ...] = Field((), description="images to pretrain on; empty: the train part of `data`")
    allow_overlap: bool = Field(
        False, description="pretrain on unlabelled images that are in the val or test part as well"
    )
    format: str = "auto"
    split: str | None = Field(None, description="the part to train on; None: the data set's train part")
    val_split: str | None = Field(None, description="the part that chooses the best weights; None: the val part")
    test_split: str | None = Field(
        None, description="the part that is scored; None: test, where there is one, else val"
    )
    preset: str = "small"
    start: str | None = Field(
        None,
        description="the model that every run starts from, pretraining too, such as hf:ORG/NAME; None: the backbone's weights",
    )
    methods: tuple[Annotated[str, AfterValidator(check_method)], ...] = Field(
        default_factory=lambda: tuple(PRETEXTS), min_length=1, description="compared with scratch"
    )
    fractions: tuple[float, ...] = Field((0.1, 0.3, 1.0), min_length=1, description="of the labelled images")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="of splits, weights and order; paired")
    pretrain_steps: int | None = Field(None, ge=1, description="None: as the preset says")
    finetune_steps: int | None = Field(None, ge=1, description="for every fraction; None: the preset's epochs")
    evaluations: int = Field(5, ge=1, description="of each finetuning on the val part, evenly spread")
    cost_steps: int = Field(30, ge=5, description="cost: steps that are timed")
    weights: tuple[float, ...] = Field((0.3, 1.0, 3.0), min_length=1, description="sensitivity: values of both λ")
    view_ious: tuple[float, ...] = Field((0.3, 0.5, 0.7), min_length=1, description="ablation")
    shown: int = Field(4, ge=1, description="qualitative: images")
    score_limit: int | None = Field(None, ge=1, description="score on the first N images only")
    both: tuple[str, ...] = Field((), description="KEY=VALUE for both stages")
    pretrain: tuple[str, ...] = Field((), description="KEY=VALUE for pretraining")
    finetune: tuple[str, ...] = Field((), description="KEY=VALUE for finetuning")
    fast: bool = False

    @model_validator(mode="after")
    def _check(self) -> StudySettings:
        for fraction in self.fractions:
            if not 0 < fraction <= 1:
                raise ValueError(
                    f"fractions: got {fraction}, expected shares above 0 and at most 1, such as 0.1 for 10 %"
                )
        if self.study in ("sensitivity", "ablation") and "siamese" not in self.methods:
            raise ValueError(f"{self.study} varies settings of Siamese DETR; put siamese among the methods")
        for assignment in (*self.both, *self.pretrain, *self.finetune):
            key = assignment.partition("=")[0].strip()
            if key in _OWN:
                raise ValueError(f"got {assignment}, which the study sets for every run; {_OWN[key]}")
        return self


# May differ between two calls on one folder: these choose cells, and change none.
GROWING = ("methods", "fractions", "seeds", "weights", "view_ious", "shown")


def _fast_methods() -> dict[str, Any]:
    return {f"{method}.{key}": value for method in PRETEXTS for key, value in _FAST_METHOD.items()}


@functools.cache  # the settings of every cell ask, and a start of the hub is read whole
def _detector_of(start: str | None) -> dict[str, Any]:
    """The shape of the start, over the preset's; classes and classifier follow the task."""
    if start is None:
        return {}
    shape = read_start(start).detector.model_dump(exclude={"num_classes", "classifier"})
    return {f"detector.{name}": value for name, value in shape.items()}


def pretrain_settings(study: StudySettings, cell: Cell, folder: Path, *, device: str = "auto") -> PretrainSettings:
    """Settings of a pretraining cell; `folder` is its run folder."""
    flags: dict[str, Any] = {
        "data.paths": list(study.unlabelled or study.data),
        "data.format": study.format,
        "data.split": None if study.unlabelled else study.split,
        "method": cell.init,
        "steps": study.cost_steps if cell.kind == "cost" else study.pretrain_steps,
        "seed": cell.seed,
        "device": device,
        "output": str(folder),
        "init": study.start,
        **(_FAST_DETECTOR | _fast_methods() if study.fast else {}),
        **_detector_of(study.start),
    }
    timing = ("log_every=1", "checkpoint_every=1000000") if cell.kind == "cost" else ()
    varied = (f"{key}={value}" for key, value in cell.variation)
    assignments = [*study.both, *study.pretrain, *varied, *timing]  # later ones override: the cell's over the user's
    return resolve(PretrainSettings, preset=study.preset, flags=flags, assignments=assignments)


def finetune_settings(
    study: StudySettings, cell: Cell, folder: Path, *, init: Path | None, num_train: int, device: str = "auto"
) -> FinetuneSettings:
    """Settings of a finetuning cell.

    Args:
        study: the study.
        cell: the cell.
        folder: its run folder.
        init: the pretrained run; None: from scratch, or from the study's `start` alone.
        num_train: labelled images of the whole train part.
        device: of the run.
    """
    flags: dict[str, Any] = {
        "data.paths": list(study.data),
        "data.format": study.format,
        "data.split": study.split,
        "data.val_split": study.val_split,
        "data.fraction": cell.fraction,
        "init": study.start if init is None else str(init),
        "steps": study.finetune_steps,
        "seed": cell.seed,
        "device": device,
        "output": str(folder),
        **(_FAST_DETECTOR | _FAST_FINETUNE | {"val_limit": study.score_limit} if study.fast else {}),
        **_detector_of(study.start),
    }
    own = () if cell.freeze == "none" else (f"freeze={cell.freeze}",)  # over a user's freeze=backbone
    assignments = [*study.both, *study.finetune, *own]
    settings = resolve(FinetuneSettings, preset=study.preset, flags=flags, assignments=assignments)
    epochs = (
        total_steps(settings, num_train, cell.fraction) * _images_a_step(settings) / images_of(num_train, cell.fraction)
    )
    return settings.model_copy(update={"val_every": max(epochs / study.evaluations, 1e-6)})


def images_of(num_train: int, fraction: float) -> int:
    """Images of a fraction, as `DetectionIndex.fraction` counts them."""
    return max(1, round(fraction * num_train))


def total_steps(settings: PretrainSettings | FinetuneSettings, num_images: int, fraction: float = 1.0) -> int:
    """Optimiser steps of a run on one process."""
    if settings.steps is not None:
        return settings.steps
    per_epoch = -(-images_of(num_images, fraction) // settings.batch_size) / settings.grad_accum
    return max(1, round((settings.epochs or 0) * per_epoch))


def _images_a_step(settings: FinetuneSettings) -> int:
    return settings.batch_size * settings.grad_accum
