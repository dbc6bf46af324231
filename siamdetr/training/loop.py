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
from lightning.pytorch.callbacks import Callback
from torch.utils.data import Dataset

from siamdetr.data.sampler import SampleOrder
from siamdetr.errors import CheckpointError, LoadingError, NonFiniteLossError
from siamdetr.files import LAST_MODEL
from siamdetr.model_file import ModelMetadata, save_model
from siamdetr.models.compiled import compile_parts
from siamdetr.models.detector import Detector
from siamdetr.settings.training import RunSettings
from siamdetr.system.launcher import launch
from siamdetr.system.signals import SignalWatch
from siamdetr.training.callbacks.saver import Saver
from siamdetr.training.callbacks.step_log import StepLog
from siamdetr.training.callbacks.weight_average import WeightAverage
from siamdetr.training.loader import BatchStream
from siamdetr.training.precision import choose_precision, recorded_precision
from siamdetr.training.progress import ProgressSink
from siamdetr.training.run_folder import RunFolder, write_config
from siamdetr.training.step_module import StepModule
from siamdetr.training.trainer import build_trainer, process_rank, run_device, world_size

_log = logging.getLogger(__name__)

# What PyTorch and Lightning raise where a checkpoint lacks something, or has it in another shape.
_MISFITS = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError)


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


def train(
    job: TrainingJob, settings: RunSettings, run: RunFolder, *, watch: SignalWatch, progress: ProgressSink
) -> float:
    """Train to the end, or until a signal or an error; returns the seconds it took.

    Raises:
        Interrupted: a signal came; everything is saved.
        NonFiniteLossError: a loss or a weight is not finite; the checkpoint is from before it.
        CheckpointError: the disk is full, or the checkpoint does not fit the run.
    """
    module, started = job.module, time.perf_counter()
    module.changes, module.data = run.changes, run.data
    if run.content is not None:
        _restore(job, run)
    if module.total_steps <= run.step or _stopped(run, settings):
        _log.info("The run is finished already: %d of %d steps.", run.step, module.total_steps)
        return 0.0
    order = _order(settings, job.length, process_rank(settings))
    module.image_ids_of = lambda batch: tuple(job.image_id(i) for _, i in order.batch(batch))
    if settings.compile:
        _log.info("The detector is compiled during the first steps, which takes minutes.")
        compile_parts(module.detector)
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
        try:
            trainer.fit(module, stream, ckpt_path=run.checkpoint)
        except _MISFITS as error:
            if module.underway or run.checkpoint is None or isinstance(error, (NonFiniteLossError, LoadingError)):
                raise
            raise _misfit(run, error) from error
    return time.perf_counter() - started


def _with_precision(job: TrainingJob, settings: RunSettings, run: RunFolder) -> RunSettings:
    """The settings with `precision: auto` decided, and written into the run's files."""
    if settings.precision != "auto":
        return settings
    decided = recorded_precision(settings, run)
    if decided.precision == "auto":
        count = min(settings.batch_size, job.length)
        batch = job.collate([job.dataset[0, position] for position in range(count)])
        precision = choose_precision(job.module, batch, settings, run_device(settings), processes=world_size(settings))
        decided = settings.model_copy(update={"precision": precision})
    job.module.run_settings = decided
    if launch().is_first:
        write_config(decided, run.path)
    return decided


def _restore(job: TrainingJob, run: RunFolder) -> None:
    """The weights of the checkpoint, and the model file that belongs to them.

    A kill between the two may have left an older model file.

    Raises:
        CheckpointError: the checkpoint does not fit the run.
    """
    content, module = run.content or {}, job.module
    try:
        module.load_state_dict(content["state_dict"])
        if job.average is not None:
            job.average.load_state_dict(content["callbacks"][job.average.state_key])
        module.step = run.step
        if launch().is_first:
            save_detector(job, run.path / LAST_MODEL, run.step)
    except _MISFITS as error:
        if isinstance(error, CheckpointError):
            raise
        raise _misfit(run, error) from error


def _misfit(run: RunFolder, error: Exception) -> CheckpointError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return CheckpointError(
        f"{run.checkpoint}: damaged, or not of this run ({reason}); resume from another, or begin anew"
    )


def _stopped(run: RunFolder, settings: RunSettings) -> bool:
    """Whether the run has ended early, by a rule that still holds."""
    rule = getattr(settings, "early_stopping", None)
    return run.state is not None and run.state.stopped and run.state.settings.get("early_stopping") == rule


def save_detector(job: TrainingJob, path: Path, step: int, metrics: dict[str, float] | None = None) -> None:
    """Write the detector, with its averaged weights if there are any."""
    detector = job.module.detector
    metadata = job.metadata(step)
    if job.module.changes:
        *before, last = metadata.lineage
        metadata = metadata.model_copy(update={"lineage": (*before, "; ".join([last, *job.module.changes]))})
    if metrics:
        metadata = metadata.model_copy(update={"metrics": metrics})
    with job.average.applied(detector) if job.average is not None else nullcontext():
        save_model(path, job.finished(detector), metadata)


def seed_weights(settings: RunSettings) -> None:
    """Initial weights are a function of the seed."""
    torch.manual_seed(settings.seed)
