"""The Lightning trainer of a run: one endless epoch of steps.

Order, counters, saving and evaluation are ours, not Lightning's.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy

from siamdetr.errors import SettingsError
from siamdetr.models.compiled import check_compiler
from siamdetr.pretext.run_settings import PretrainSettings
from siamdetr.settings.training import RunSettings
from siamdetr.system.launcher import launch
from siamdetr.training.checkpoints.checkpoint_io import AtomicCheckpointIO
from siamdetr.training.metrics_log import MetricsCsv, TensorBoardEvents

_PRECISIONS: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


def build_trainer(settings: RunSettings, folder: Path, callbacks: list[Callback], resume_step: int) -> Trainer:
    """A Lightning trainer for one pass over the batch stream, without its own evaluation or saving."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    accelerator, devices = _device(settings)
    world = world_size(settings)
    if settings.precision == "fp16" and accelerator == "cpu":
        raise SettingsError("--precision fp16 needs a GPU; use bf16 or fp32 on the CPU")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
        return Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=_num_nodes(settings),
            strategy=_strategy(world),
            precision=_PRECISIONS[settings.precision],
            max_epochs=1,
            accumulate_grad_batches=settings.grad_accum,
            gradient_clip_val=settings.optimizer.clip or None,
            deterministic=settings.deterministic,
            sync_batchnorm=world > 1 and accelerator == "gpu" and isinstance(settings, PretrainSettings),
            logger=_loggers(settings, folder, resume_step),
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO(), _environment()],
            default_root_dir=folder,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )


def world_size(settings: RunSettings) -> int:
    """The number of training processes: from torchrun or SLURM, else from the settings."""
    return launch().world_size or settings.devices * settings.num_nodes


def process_rank(settings: RunSettings) -> int:
    """The number of this process among them, from 0."""
    return launch().rank(settings.devices)


def run_device(settings: RunSettings) -> torch.device:
    """The device that this process trains on."""
    if settings.device == "auto":
        return torch.device("cuda", launch().local_number) if torch.cuda.is_available() else torch.device("cpu")
    return torch.device(settings.device)


def check_compilation(settings: RunSettings) -> None:
    """Check that torch.compile works on the device of the run, if its settings ask for it.

    Raises:
        SettingsError: it does not.
    """
    if settings.compile:
        check_compiler(run_device(settings))


def _device(settings: RunSettings) -> tuple[str, int | list[int]]:
    device = run_device(settings)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"--device {settings.device}: PyTorch sees no GPU here; use --device cpu")
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise SettingsError("--device mps: PyTorch sees no Apple GPU here; use --device cpu")
        return "mps", 1
    here = world_size(settings) // _num_nodes(settings)
    if device.type == "cpu":
        return "cpu", here
    if device.type == "cuda":
        return "gpu", [device.index] if settings.device != "auto" and device.index is not None and here == 1 else here
    raise SettingsError(f"--device got '{settings.device}', expected auto, cpu, cuda, cuda:N or mps")


def _num_nodes(settings: RunSettings) -> int:
    return launch().num_nodes or settings.num_nodes


def _environment() -> ClusterEnvironment:
    """The environment from which Lightning learns of the other processes.

    By default it would mistake the variables of any shell in a SLURM job for those of srun.
    """
    by = launch().by
    if by == "torchrun":
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if by == "slurm" else LightningEnvironment()


def _strategy(world: int) -> Strategy | str:
    """Gradients averaged over processes; small models gain nothing from sharding."""
    return DDPStrategy(find_unused_parameters=False) if world > 1 else "auto"


def _loggers(settings: RunSettings, folder: Path, resume_step: int) -> list[Logger]:
    if not launch().is_first:
        return []
    loggers: list[Logger] = [MetricsCsv(folder, resume_step), TensorBoardEvents(folder, resume_step)]
    extra: Any
    for name in settings.loggers:
        if name == "wandb":
            from lightning.pytorch.loggers import WandbLogger as extra
        else:
            from lightning.pytorch.loggers import MLFlowLogger as extra
        loggers.append(extra(save_dir=str(folder)))
    return loggers
