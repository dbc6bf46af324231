"""Self-supervised pretraining on images without labels; leaves a run folder."""

from __future__ import annotations

import logging

from siamdetr.evaluation.classes import OBJECT
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.model_file import ModelMetadata, find_model_file
from siamdetr.models.detector import Detector
from siamdetr.pretext.registry import PRETEXTS
from siamdetr.pretext.run_settings import PretrainSettings
from siamdetr.system.distributed import first_process_first
from siamdetr.system.launcher import launch
from siamdetr.system.signals import SignalWatch
from siamdetr.training.callbacks.diagnostics import Diagnostics
from siamdetr.training.callbacks.weight_average import WeightAverage
from siamdetr.training.initial_weights import run_normalization, start
from siamdetr.training.loop import TrainingJob, begin, run_length, seed_weights, train
from siamdetr.training.open_datasets import open_pretraining
from siamdetr.training.precision import prepare_arithmetic, recorded_precision
from siamdetr.training.pretrain_module import PretrainModule, class_agnostic
from siamdetr.training.pretrain_setup import resolved_pretraining, stored_proposals, training_samples
from siamdetr.training.progress import ProgressSink, Silent, as_callback
from siamdetr.training.proposal_figures import measure_proposals, save_proposal_figures
from siamdetr.training.run_folder import choose_folder
from siamdetr.training.run_report import write_report
from siamdetr.training.run_result import RunResult

_log = logging.getLogger(__name__)


def pretrain(
    settings: PretrainSettings, *, progress: ProgressSink | None = None, resume: str | None = None
) -> RunResult:
    """Self-supervised pretraining of a detector.

    Args:
        settings: see `resolve`.
        progress: draws the progress; None: silent.
        resume: "auto" (go on if there is a checkpoint, else begin), a checkpoint, a run folder; None: begin.
    Raises:
        Interrupted: SIGINT or SIGTERM, after saving; a SystemExit with code 130 or 143.
        DataError, CheckpointError, SettingsError, NonFiniteLossError: see there.
    """
    sink = progress or Silent()
    prepare_arithmetic(settings.tf32)
    _log.info("Self-supervised pretraining: no labels are used. To train on labels: siamdetr finetune")
    with SignalWatch() as watch:
        settings = resolved_pretraining(settings)
        run = choose_folder(settings, resume)
        settings = recorded_precision(settings, run)
        data = open_pretraining(settings.data, as_callback(sink, "read", watch.raise_if_received))
        index = data.images
        begin(settings, run)
        with first_process_first(watch.raise_if_received):
            poll = as_callback(sink, "proposals", watch.raise_if_received)
            proposals = stored_proposals(settings, run.path, index, poll)
            figures = measure_proposals(proposals, data.labelled) if launch().is_first else None
        length = run_length(settings, len(index))
        preprocessing = PreprocessingSpec.from_size(settings.of_method.size).normalized_by(
            run_normalization(settings, run)
        )
        entry = PRETEXTS[settings.method]
        dataset = entry.dataset(index, proposals, settings.of_method, settings.seed)
        seed_weights(settings)
        detector = Detector(settings.detector)
        begun = start(detector, settings, (OBJECT,), resumed=run.content is not None)
        with first_process_first(watch.raise_if_received):
            poll = as_callback(sink, "views", watch.raise_if_received)
            samples, collate = training_samples(dataset, settings, run, detector, preprocessing.normalization, poll)
        module = PretrainModule(detector, settings, preprocessing, length.total)
        if run.content is None:
            module.pretext.load_weights(settings.backbone_weights)
        what = f"pretext: {settings.method} on {', '.join(settings.data.paths)}"
        job = TrainingJob(
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
        seconds = train(job, settings, run, watch=watch, progress=sink)
    if launch().is_first:
        if seconds:  # else the run was finished before, and its figures are there
            save_proposal_figures(run.path, figures, dataset)
        write_report(run.path)
    return RunResult(run.path, find_model_file(run.path), job.module.step, seconds)
