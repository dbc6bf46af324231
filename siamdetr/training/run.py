"""The two stages: `pretrain` on images without labels, `finetune` on labelled ones. Both leave a run folder."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

from siamdetr.checkpoint import ModelMetadata, find_model_file
from siamdetr.data.dataset import DetectionDataset, collate_detection
from siamdetr.data.index import DetectionIndex
from siamdetr.data.transforms import FinetuneTransform
from siamdetr.evaluation.classes import OBJECT
from siamdetr.evaluation.coco import DetectionMetrics, evaluate
from siamdetr.models.detector import Detector
from siamdetr.preprocessing import PreprocessingSpec
from siamdetr.signals import SignalWatch
from siamdetr.training.diagnostics import Diagnostics
from siamdetr.training.ema import WeightAverage
from siamdetr.training.evaluator import Evaluator, scores
from siamdetr.training.finetune_module import FinetuneModule
from siamdetr.training.finetune_setup import fill_backbone, first_batch, resolved, start
from siamdetr.training.folders import choose_folder, process_rank
from siamdetr.training.module import StepModule
from siamdetr.training.optim import freeze
from siamdetr.training.pictures import save_pictures
from siamdetr.training.pretrain_module import PretrainModule, class_agnostic
from siamdetr.training.pretrain_setup import fill_pretext, pretraining_data, pretraining_detector, stored_proposals
from siamdetr.training.progress import ProgressSink, Silent, as_callback
from siamdetr.training.proposal_figures import measure_proposals, save_proposal_figures
from siamdetr.training.run_report import write_report
from siamdetr.training.session import (
    Session,
    begin,
    first_process_first,
    run_length,
    save_detector,
    seed_weights,
    train,
)
from siamdetr.training.settings import FinetuneSettings, PretrainSettings
from siamdetr.training.sources import open_labelled, open_pretraining
from siamdetr.training.start import Start

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        folder: the run folder.
        model: the model file to use: best.safetensors where there was an evaluation, else last.safetensors.
        steps: optimiser steps, of all sessions together.
        seconds: of training, in this session.
        metrics: of the best weights, if this session evaluated.
        fresh: modules that started afresh because the given start did not fit them, such as "class_head".
    """

    folder: Path
    model: Path
    steps: int
    seconds: float
    metrics: DetectionMetrics | None = None
    fresh: tuple[str, ...] = ()


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
    _log.info("Self-supervised pretraining: no labels are used. To train on labels: siamdetr finetune")
    with SignalWatch() as watch:
        settings = settings.model_copy(update={"detector": pretraining_detector(settings)})
        run = choose_folder(settings, resume)
        data = open_pretraining(settings.data, as_callback(sink, "read", watch.raise_if_received))
        index = data.images
        begin(settings, run)
        with first_process_first(settings):
            poll = as_callback(sink, "proposals", watch.raise_if_received)
            proposals = stored_proposals(settings, run.path, index, poll)
        length = run_length(settings, len(index))
        preprocessing = PreprocessingSpec.from_size(settings.of_method.size)
        dataset, collate = pretraining_data(settings, index, proposals)
        seed_weights(settings)
        detector = Detector(settings.detector)
        if run.content is None:
            fill_backbone(detector, settings)
        module = PretrainModule(detector, settings, preprocessing, length.total)
        if run.content is None:
            fill_pretext(module.pretext, settings)
        what = f"pretext: {settings.method} on {', '.join(settings.data.paths)}"
        session = Session(
            module,
            dataset,
            len(index),
            lambda i: int(index.image_ids[i]),
            collate,
            lambda step: ModelMetadata(
                class_names=(OBJECT,), preprocessing=preprocessing, lineage=(f"{what}, {step} steps",)
            ),
            WeightAverage(settings.ema) if settings.ema else None,
            callbacks=(Diagnostics(run.path, dataset, len(index), collate, total_steps=length.total),),
            finished=class_agnostic,
        )
        figures = measure_proposals(proposals, data.labelled) if process_rank() == 0 else None
        seconds = train(session, settings, run, watch=watch, progress=sink)
    if process_rank() == 0:
        if seconds:  # else the run was finished before, and its figures are there
            save_proposal_figures(run.path, figures, dataset)
        write_report(run.path)
    return RunResult(run.path, find_model_file(run.path), session.module.step, seconds)


def finetune(
    settings: FinetuneSettings, *, progress: ProgressSink | None = None, resume: str | None = None
) -> RunResult:
    """Supervised training of a detector; arguments and errors as of `pretrain`."""
    sink = progress or Silent()
    with SignalWatch() as watch:
        data = open_labelled(settings, as_callback(sink, "read", watch.raise_if_received))
        settings = resolved(settings, data.train)
        run = choose_folder(settings, resume)
        begin(settings, run)
        index = first_batch(data.train, settings) if settings.overfit_batch else data.train
        length = run_length(settings, len(index))
        seed_weights(settings)
        detector = Detector(settings.detector)
        begun = start(detector, settings, index.class_names, resumed=run.content is not None)
        freeze(detector, settings.freeze)
        session = _finetune_session(detector, settings, index, begun, length.total)
        evaluator = None
        if data.val is not None:
            every = max(1, round(settings.val_every * length.per_epoch))
            evaluator = _evaluator(session, settings, run.path, data.val, every=every, watch=watch, progress=sink)
            session = dataclasses.replace(session, callbacks=(evaluator,))
        seconds = train(session, settings, run, watch=watch, progress=sink)
    if process_rank() == 0:
        if data.val is not None:
            save_pictures(run.path, data.val)
        write_report(run.path)
    metrics = evaluator.metrics if evaluator is not None else None
    return RunResult(run.path, find_model_file(run.path), session.module.step, seconds, metrics, begun.fresh)


def _finetune_session(
    detector: Detector, settings: FinetuneSettings, index: DetectionIndex, begun: Start, total_steps: int
) -> Session:
    preprocessing = _preprocessing(settings)
    what = f"finetune: {settings.detector.variant} on {', '.join(settings.data.paths)} ({len(index)} images)"

    def metadata(step: int) -> ModelMetadata:
        return ModelMetadata(
            class_names=index.class_names,
            category_ids=index.category_ids,
            preprocessing=preprocessing,
            lineage=(*begun.lineage, f"{what}, {step} steps"),
        )

    augment = "none" if settings.overfit_batch else settings.images.augment
    transform = FinetuneTransform(preprocessing, augment)
    return Session(
        FinetuneModule(detector, settings, preprocessing, total_steps),
        DetectionDataset(index, transform, settings.seed),
        len(index),
        lambda i: int(index.image_ids[i]),
        collate_detection,
        metadata,
        WeightAverage(settings.ema) if settings.ema else None,
    )


def _preprocessing(settings: FinetuneSettings) -> PreprocessingSpec:
    return PreprocessingSpec.from_size(settings.images.size, settings.images.max_size)


def _evaluator(
    session: Session,
    settings: FinetuneSettings,
    folder: Path,
    index: DetectionIndex,
    *,
    every: int,
    watch: SignalWatch,
    progress: ProgressSink,
) -> Evaluator:
    preprocessing = _preprocessing(settings)

    def score(detector: Detector) -> DetectionMetrics | None:
        if process_rank() > 0:
            return None
        return evaluate(
            detector,
            index,
            preprocessing=preprocessing,
            batch_size=settings.batch_size,
            workers=settings.workers,
            progress=as_callback(progress, "evaluate", watch.raise_if_received),
        )

    def save_best(module: StepModule, metrics: DetectionMetrics) -> None:
        save_detector(session, folder / "best.safetensors", module.step, scores(metrics))

    return Evaluator(
        folder,
        every=every,
        score=score,
        save_best=save_best,
        average=session.average,
        patience=settings.early_stopping,
    )
