"""Settings of a run: data, images, optimizer, schedule, and the settings of each stage.

This file imports no torch, because the command line reads it for its help.
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from siamdetr.settings.base import Settings
from siamdetr.settings.detector import DenoisingSettings, DetectorSettings, LossSettings

Stage = Literal["pretrain", "finetune"]
Precision = Literal["fp32", "bf16", "fp16", "auto"]
TF32 = Literal["none", "convolutions", "all"]
Freeze = Literal["none", "backbone", "body"]
Logger = Literal["wandb", "mlflow"]


class DataSettings(Settings):
    """The images, and how they are read."""

    paths: tuple[str, ...] = Field(..., min_length=1, description="data sets or folders of images")
    format: str = Field("auto", description="auto, coco, voc, yolo or folder")
    split: str | None = Field(None, description="the part to train on; None: the data set's train part, else all")
    val_paths: tuple[str, ...] = Field((), description="finetuning: a data set to validate on; empty: `paths`")
    val_split: str | None = Field(None, description="finetuning: the part to validate on; None: its val part")
    fraction: float = Field(1.0, gt=0, le=1, description="of the labelled images, chosen by `seed`")
    strict: bool = Field(False, description="refuse a data set with problems instead of skipping them")
    proposals: tuple[str, ...] = Field(
        (),
        description="pretraining: files of proposals (`siamdetr proposals`) or their shards; empty: computed and stored beside the run",
    )


class ImageSettings(Settings):
    """Size and augmentation of the images a detector is finetuned on."""

    size: int | tuple[int, int] = Field(800, description="shortest side in pixels, or a fixed (height, width)")
    max_size: int = Field(1333, ge=16, description="longest side, pixels, where `size` is a shortest side")
    augment: Literal["none", "flip", "detr", "strong"] = Field(
        "detr",
        description="detr: flip, and either many scales or a crop between two resizes; flip: flip only; strong: before detr's mosaic, "
        "copy-paste, scale jitter, colour and cut-out, but not in the last tenth of the epochs",
    )


class OptimizerSettings(Settings):
    """AdamW with two groups of parameters: the backbone has its own learning rate."""

    lr: float = Field(1e-4, gt=0)
    lr_backbone: float = Field(1e-5, ge=0)
    sampling_factor: float = Field(
        1.0,
        gt=0,
        description="deformable: factor of the learning rate of the layers that predict sampling offsets (official: .1)",
    )
    weight_decay: float = Field(1e-4, ge=0)
    clip: float = Field(0.1, ge=0, description="largest norm of the gradient; 0: no clipping")


class ScheduleSettings(Settings):
    """The learning rate over the run, as a factor of `optimizer.lr`.

    `drop_at` and `warmup` are fractions of the run.
    """

    name: Literal["step", "cosine", "onecycle", "constant"] = "step"
    warmup: float = Field(
        0.0, ge=0, lt=1, description="warm-up: share of the run in which the learning rate rises; onecycle: 0 means .3"
    )
    drop_at: float = Field(0.8, gt=0, le=1, description="step: where the learning rate falls to a tenth")
    final: float = Field(0.01, ge=0, le=1, description="cosine, onecycle: the factor at the end")


class RunSettings(Settings):
    """The settings that both stages share.

    Those of pretraining are in `siamdetr.pretext.run_settings`, which knows the pretexts.
    """

    stage: ClassVar[Stage]

    detector: DetectorSettings = DetectorSettings()
    data: DataSettings
    init: str | None = Field(
        None,
        description="the model to start from: a run folder, a model file, a folder of transformers' save_pretrained, or "
        "hf:ORG/NAME of the Hugging Face hub",
    )
    backbone_weights: str = Field("imagenet", description="imagenet, none, or a file of weights")
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    epochs: float | None = Field(None, gt=0, description="passes over the data; or `steps`")
    steps: int | None = Field(None, ge=1, description="optimizer steps; overrides `epochs`")
    batch_size: int = Field(4, ge=1, description="images a process and a step (pretraining: pairs of views)")
    grad_accum: int = Field(1, ge=1, description="batches whose gradients make one step")
    precision: Precision = Field(
        "fp32",
        description="fp32, bf16, fp16 (GPU), or auto: the faster of fp32 and bf16 on this device, timed at the start",
    )
    tf32: TF32 = Field(
        "convolutions",
        description="on a GPU: which float32 products may round their factors to 10 bits; convolutions: as PyTorch itself",
    )
    compile: bool = Field(
        False,
        description="torch.compile of the detector; needs a C++ compiler, and minutes at the first step",
    )
    seed: int = Field(0, ge=0)
    deterministic: bool = Field(False, description="only deterministic kernels, at some cost of speed")
    workers: int = Field(2, ge=0, description="processes that load images")
    worker_timeout: int = Field(300, ge=0, description="seconds after which a hung worker stops the run; 0: never")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
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


class FinetuneSettings(RunSettings):
    """Supervised training of a detector: `siamdetr finetune`."""

    stage: ClassVar[Stage] = "finetune"

    images: ImageSettings = ImageSettings()
    losses: LossSettings = LossSettings()
    denoising: DenoisingSettings = DenoisingSettings()
    freeze: Freeze = Field("none", description="backbone: only the backbone; body: all but the class and box heads")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of the averaged weights, which are scored and saved; 0: no averaging"
    )
    repeat_threshold: float = Field(
        0.0,
        ge=0,
        le=1,
        description="classes in a smaller share of the images than this are seen more often (LVIS' repeat factors); 0: off",
    )
    val_every: float = Field(1.0, gt=0, description="epochs between two evaluations")
    val_limit: int | None = Field(None, ge=1, description="evaluate on the first N images only")
    val_max_detections: int = Field(
        100, ge=1, description="detections of an image that AP counts; COCO: 100, fewer than some images have objects"
    )
    early_stopping: int | None = Field(None, ge=1, description="stop after N evaluations without a better AP")
    overfit_batch: bool = Field(
        False, description="train on the first batch alone, without augmentation: the loss must fall"
    )


RunSettingsType = TypeVar("RunSettingsType", bound=RunSettings)
