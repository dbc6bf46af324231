"""Self-supervised pretraining on images without labels; leaves a run folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from siamdetr.data.index import DetectionIndex
from siamdetr.evaluation.classes import OBJECT
from siamdetr.files import PROPOSALS_FILE
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.model_file import ModelMetadata, find_model_file
from siamdetr.models.detector import Detector
from siamdetr.pretext.datasets import UnlabelledDataset
from siamdetr.pretext.registry import PRETEXTS
from siamdetr.pretext.run_settings import PretrainSettings
from siamdetr.system.distributed import first_process_first
from siamdetr.system.heap import freed_memory_kept
from siamdetr.system.launcher import launch
from siamdetr.system.signals import SignalWatch
from siamdetr.training.callbacks.diagnostics import Diagnostics
from siamdetr.training.callbacks.weight_average import WeightAverage
from siamdetr.training.initial_weights import run_normalization, start
from siamdetr.training.loop import TrainingJob, run_length, seed_weights, train
from siamdetr.training.open_datasets import PretrainData, open_pretraining
from siamdetr.training.precision import training_arithmetic
from siamdetr.training.pretrain_module import PretrainModule, class_agnostic
from siamdetr.training.pretrain_setup import resolved_pretraining, stored_proposals, training_samples
from siamdetr.training.progress import ProgressSink, Silent, as_callback
from siamdetr.training.proposal_figures import measure_proposals, save_proposal_figures
from siamdetr.training.run_folder import RunFolder, open_run
from siamdetr.training.run_report import write_report
from siamdetr.training.run_result import RunResult
from siamdetr.training.trainer import check_compilation

_log = logging.getLogger(__name__)


def pretrain(
    settings: PretrainSettings,
    *,
    progress: ProgressSink | None = None,
    resume: str | None = None,
    allow_changes: bool = False,
) -> RunResult:
    """Self-supervised pretraining of a detector.

    Args:
        settings: see `resolve`.
        progress: draws the progress; None: silent.
        resume: "auto" (go on if there is a checkpoint, else begin), a checkpoint, a run folder; None: begin.
        allow_changes: go on although the length, the rates or the data are not those of the checkpoint; the lineage
            says so.
    Raises:
        Interrupted: SIGINT or SIGTERM, after saving; a SystemExit with code 130 or 143.
        DataError, CheckpointError, SettingsError, NonFiniteLossError, LoadingError: see there.
    """
    sink = progress or Silent()
    _log.info("Self-supervised pretraining: no labels are used. To train on labels: siamdetr finetune")
    with training_arithmetic(settings.tf32), freed_memory_kept(), SignalWatch() as watch:
        check_compilation(settings)
        settings = resolved_pretraining(settings)
        data = open_pretraining(settings.data, as_callback(sink, "read", watch.raise_if_received))
        with open_run(settings, resume, {"images": data.images}, allow_changes=allow_changes) as run:
            return _train(settings, data, run, watch, sink)


def _train(
    settings: PretrainSettings, data: PretrainData, run: RunFolder, watch: SignalWatch, sink: ProgressSink
) -> RunResult:
    index, entry = data.images, PRETEXTS[settings.method]
    with first_process_first(watch.raise_if_received):
        poll = as_callback(sink, "proposals", watch.raise_if_received)
        proposals = stored_proposals(settings, run.path, index, poll)
        figures = measure_proposals(proposals, data.labelled) if launch().is_first else None
    dataset = entry.dataset(index, proposals, settings.of_method, settings.seed)
    job = _pretrain_job(settings, run, index, dataset, poll=as_callback(sink, "views", watch.raise_if_received))
    seconds = train(job, settings, run, watch=watch, progress=sink)
    if launch().is_first:
        # Of a run that was finished before they are there, unless it was killed right after its last checkpoint.
        if seconds or not (run.path / PROPOSALS_FILE).exists():
            save_proposal_figures(run.path, figures, dataset)
        write_report(run.path)
    return RunResult(run.path, find_model_file(run.path), job.module.step, seconds)


def _pretrain_job(
    settings: PretrainSettings,
    run: RunFolder,
    index: DetectionIndex,
    dataset: UnlabelledDataset[Any],
    *,
    poll: Callable[[int, int], None],
) -> TrainingJob:
    entry = PRETEXTS[settings.method]
    length = run_length(settings, len(index))
    preprocessing = PreprocessingSpec.from_size(settings.of_method.size).normalized_by(run_normalization(settings, run))
    seed_weights(settings)
    detector = Detector(settings.detector)
    begun = start(detector, settings, (OBJECT,), resumed=run.content is not None)
    with first_process_first():
        samples, collate = training_samples(dataset, settings, run, detector, preprocessing.normalization, poll)
    module = PretrainModule(detector, settings, preprocessing, length.total)
    if run.content is None:
        module.pretext.load_weights(settings.backbone_weights)
    what = f"pretext: {settings.method} on {', '.join(settings.data.paths)}"
    return TrainingJob(
        module,
        samples,
        len(index),
        lambda i: int(index.image_ids[i]),
        collate,
        lambda step: ModelMetadata(
            class_names=(OBJECT,),
            class_agnostic=True,
            preprocessing=preprocessing,
            lineage=(*begun.lineage, f"{what}, {step} steps"),
        ),
        WeightAverage(settings.ema) if settings.ema else None,
        callbacks=(Diagnostics(run.path, dataset, len(index), entry.collate, total_steps=length.total),),
        finished=lambda detector: module.pretext.transferred(class_agnostic(detector)),
    )
