"""One training session, from a module and a batch stream to a run folder, shared by both stages."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.callbacks import Callback
from torch.utils.data import Dataset

from siamdetr.data.sampler import SampleOrder
from siamdetr.files import CONFIG_FILE, LAST_MODEL
from siamdetr.model_file import ModelMetadata, save_model
from siamdetr.models.detector import Detector
from siamdetr.settings.base import to_json
from siamdetr.settings.training import RunSettings
from siamdetr.system.atomic_file import atomic_text, sweep_temporaries
from siamdetr.system.launcher import launch
from siamdetr.system.signals import SignalWatch
from siamdetr.training.callbacks.saver import Saver
from siamdetr.training.callbacks.step_log import StepLog
from siamdetr.training.callbacks.weight_average import WeightAverage
from siamdetr.training.loader import BatchStream
from siamdetr.training.precision import choose_precision
from siamdetr.training.progress import ProgressSink
from siamdetr.training.run_folder import RunFolder, check_same_run
from siamdetr.training.step_module import StepModule
from siamdetr.training.trainer import build_trainer, process_rank, run_device, world_size

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Length:
    """The length of a run."""

    total: int  # optimiser steps
    per_epoch: float  # optimizer steps in one pass over the data


@dataclass(frozen=True)
class TrainingJob:
    """Everything that a stage passes to the training loop.

    Attributes:
        dataset: takes (epoch, position).
        length: images.
        image_id: position to the data set's own id, for messages.
        collate: samples to a batch.
        metadata: describes the detector at a step, for the model files.
        average: of the weights, if wanted.
        callbacks: of the stage itself (evaluation), between the averaging and the saving.
        finished: the detector as it goes into model files.
    """

    module: StepModule
    dataset: Dataset[Any]
    length: int
    image_id: Callable[[int], int]
    collate: Callable[[list[Any]], Any]
    metadata: Callable[[int], ModelMetadata]
    average: WeightAverage | None
    callbacks: tuple[Callback, ...] = ()
    finished: Callable[[Detector], Detector] = lambda detector: detector


def run_length(settings: RunSettings, num_images: int) -> Length:
    """The optimizer steps of a run over `num_images` images."""
    per_epoch = _order(settings, num_images, 0).num_batches / settings.grad_accum
    total = settings.steps if settings.steps is not None else max(1, round((settings.epochs or 0) * per_epoch))
    return Length(total, per_epoch)


def _order(settings: RunSettings, length: int, rank: int) -> SampleOrder:
    world = world_size(settings)
    return SampleOrder(length, seed=settings.seed, batch_size=settings.batch_size, rank=rank, world_size=world)


def begin(settings: RunSettings, run: RunFolder) -> None:
    """Write config.yaml for a new run, or check that the checkpoint belongs to this run.

    Raises:
        CheckpointError: it is not.
    """
    if run.content is not None:
        check_same_run(run.content, settings, run.checkpoint or run.path)
        _log.info("Going on from %s at step %d.", run.checkpoint, run.step)
    if launch().is_first:
        sweep_temporaries(run.path)
    _write_config(settings, run)


def _write_config(settings: RunSettings, run: RunFolder) -> None:
    if launch().is_first:
        text = yaml.safe_dump(to_json(settings), sort_keys=False, allow_unicode=True)
        atomic_text(run.path / CONFIG_FILE, text)


def train(
    job: TrainingJob, settings: RunSettings, run: RunFolder, *, watch: SignalWatch, progress: ProgressSink
) -> float:
    """Train to the end, or until a signal or an error; returns the seconds it took.

    Raises:
        Interrupted: a signal came; everything is saved.
        NonFiniteLossError: a loss or a weight is not finite; the checkpoint is from before it.
        CheckpointError: the disk is full.
    """
    module, started = job.module, time.perf_counter()
    if module.total_steps <= run.step:
        _log.info("The run is finished already: %d of %d steps.", run.step, module.total_steps)
        return 0.0
    order = _order(settings, job.length, process_rank(settings))
    module.image_ids_of = lambda batch: tuple(job.image_id(i) for _, i in order.batch(batch))
    settings = _with_precision(job, settings, run)
    stream = BatchStream(
        job.dataset,
        job.collate,
        order,
        start=run.step * settings.grad_accum,
        stop=module.total_steps * settings.grad_accum,
        workers=settings.workers,
        timeout=settings.worker_timeout,
        pin=run_device(settings).type == "cuda",
        window=settings.grad_accum,
    )
    step_log = StepLog(settings.log_every, progress)
    saver = Saver(
        run.path,
        every=settings.checkpoint_every,
        watch=watch,
        step_log=step_log,
        save_model=lambda module: save_detector(job, run.path / LAST_MODEL, module.step),
    )
    averaging = [job.average] if job.average is not None else []
    callbacks: list[Callback] = [*averaging, step_log, *job.callbacks, saver]
    trainer = build_trainer(settings, run.path, callbacks, run.step)
    with warnings.catch_warnings():
        # Frozen parts are in eval mode on purpose; the other is Lightning's own use of an old name in PyTorch.
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
        trainer.fit(module, stream, ckpt_path=run.checkpoint)
    return time.perf_counter() - started


def _with_precision(job: TrainingJob, settings: RunSettings, run: RunFolder) -> RunSettings:
    """The settings with `precision: auto` decided, and written into the run's files."""
    if settings.precision != "auto":
        return settings
    count = min(settings.batch_size, job.length)
    batch = job.collate([job.dataset[0, position] for position in range(count)])
    precision = choose_precision(job.module, batch, settings, run_device(settings), processes=world_size(settings))
    decided = settings.model_copy(update={"precision": precision})
    job.module.run_settings = decided
    _write_config(decided, run)
    return decided


def save_detector(job: TrainingJob, path: Path, step: int, metrics: dict[str, float] | None = None) -> None:
    """Write the detector, with its averaged weights if there are any."""
    detector = job.module.detector
    metadata = job.metadata(step)
    if metrics:
        metadata = metadata.model_copy(update={"metrics": metrics})
    with job.average.applied(detector) if job.average is not None else nullcontext():
        save_model(path, job.finished(detector), metadata)


def seed_weights(settings: RunSettings) -> None:
    """Initial weights are a function of the seed."""
    torch.manual_seed(settings.seed)
