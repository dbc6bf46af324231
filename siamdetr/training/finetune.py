"""Supervised training of a detector on labelled images; leaves a run folder."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from siamdetr.data.dataset import DetectionDataset, collate_detection
from siamdetr.data.index import DetectionIndex
from siamdetr.data.transforms import FinetuneTransform
from siamdetr.evaluation.coco import detect
from siamdetr.evaluation.coco_figures import DetectionMetrics
from siamdetr.evaluation.scorer import CocoScorer
from siamdetr.files import BEST_MODEL
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.model_file import ModelMetadata, find_model_file
from siamdetr.models.detector import Detector
from siamdetr.settings.training import FinetuneSettings
from siamdetr.system.heap import freed_memory_kept
from siamdetr.system.launcher import launch
from siamdetr.system.signals import SignalWatch
from siamdetr.training.callbacks.evaluator import Evaluator, scores
from siamdetr.training.callbacks.weight_average import WeightAverage
from siamdetr.training.finetune_module import FinetuneModule
from siamdetr.training.finetune_setup import balanced, first_batch, resolved, strong_epochs, warn_of_many_objects
from siamdetr.training.initial_weights import Start, run_normalization, start
from siamdetr.training.loop import Length, TrainingJob, run_length, save_detector, seed_weights, train
from siamdetr.training.open_datasets import FinetuneData, open_labelled
from siamdetr.training.optim import freeze
from siamdetr.training.pictures import save_pictures
from siamdetr.training.precision import training_arithmetic
from siamdetr.training.progress import ProgressSink, Silent, as_callback
from siamdetr.training.run_folder import RunFolder, open_run
from siamdetr.training.run_report import write_report
from siamdetr.training.run_result import RunResult
from siamdetr.training.step_module import StepModule
from siamdetr.training.trainer import check_compilation

_log = logging.getLogger(__name__)


def finetune(
    settings: FinetuneSettings,
    *,
    progress: ProgressSink | None = None,
    resume: str | None = None,
    allow_changes: bool = False,
) -> RunResult:
    """Supervised training of a detector; arguments and errors as of `pretrain`."""
    sink = progress or Silent()
    with training_arithmetic(settings.tf32), freed_memory_kept(), SignalWatch() as watch:
        check_compilation(settings)
        data = open_labelled(settings, as_callback(sink, "read", watch.raise_if_received))
        settings = resolved(settings, data.train)
        warn_of_many_objects(data, settings)
        with open_run(settings, resume, _parts(data, settings), allow_changes=allow_changes) as run:
            result = _train(settings, data, run, watch, sink)
            if launch().is_first:
                if data.val is not None:
                    save_pictures(run.path, data.val)
                write_report(run.path)
    return result


def _parts(data: FinetuneData, settings: FinetuneSettings) -> dict[str, DetectionIndex]:
    """The parts of the data that must not change; with `val_limit`, which may, not the val part."""
    fixed_val = {} if data.val is None or settings.val_limit is not None else {"val": data.val}
    return {"train": data.train} | fixed_val


def _train(
    settings: FinetuneSettings, data: FinetuneData, run: RunFolder, watch: SignalWatch, sink: ProgressSink
) -> RunResult:
    index = first_batch(data.train, settings) if settings.overfit_batch else balanced(data.train, settings)
    length = run_length(settings, len(index))
    seed_weights(settings)
    detector = Detector(settings.detector)
    normalization = run_normalization(settings, run)
    begun = start(detector, settings, index.class_names, resumed=run.content is not None)
    freeze(detector, settings.freeze)
    images = settings.images
    preprocessing = PreprocessingSpec.from_size(images.size, images.max_size).normalized_by(normalization)
    job = _finetune_job(detector, settings, index, begun, preprocessing=preprocessing, length=length)
    evaluator = None
    if data.val is not None:
        every = max(1, round(settings.val_every * length.per_epoch))
        evaluator = _evaluator(job, settings, run.path, data.val, every=every, watch=watch, progress=sink)
        job = dataclasses.replace(job, callbacks=(evaluator,))
    seconds = train(job, settings, run, watch=watch, progress=sink)
    metrics = evaluator.metrics if evaluator is not None else None
    return RunResult(run.path, find_model_file(run.path), job.module.step, seconds, metrics, begun.fresh)


def _finetune_job(
    detector: Detector,
    settings: FinetuneSettings,
    index: DetectionIndex,
    begun: Start,
    *,
    preprocessing: PreprocessingSpec,
    length: Length,
) -> TrainingJob:
    what = f"finetune: {settings.detector.variant} on {', '.join(settings.data.paths)} ({len(index)} images)"

    def metadata(step: int) -> ModelMetadata:
        return ModelMetadata(
            class_names=index.class_names,
            category_ids=index.category_ids,
            preprocessing=preprocessing,
            lineage=(*begun.lineage, f"{what}, {step} steps"),
        )

    wanted = "none" if settings.overfit_batch else settings.images.augment
    transform = FinetuneTransform(preprocessing, "detr" if wanted == "strong" else wanted)
    strong_until = strong_epochs(length) if wanted == "strong" else 0
    return TrainingJob(
        FinetuneModule(detector, settings, preprocessing, length.total),
        DetectionDataset(index, transform, settings.seed, strong_until=strong_until),
        len(index),
        lambda i: int(index.image_ids[i]),
        collate_detection,
        metadata,
        WeightAverage(settings.ema) if settings.ema else None,
    )


def _evaluator(
    job: TrainingJob,
    settings: FinetuneSettings,
    folder: Path,
    index: DetectionIndex,
    *,
    every: int,
    watch: SignalWatch,
    progress: ProgressSink,
) -> Evaluator:
    preprocessing = job.module.preprocessing
    shown = progress if launch().is_first else Silent()  # one bar for all processes

    def detect_share(detector: Detector, positions: range) -> CocoScorer:
        return detect(
            detector,
            index,
            preprocessing=preprocessing,
            batch_size=settings.batch_size,
            workers=settings.workers,
            progress=as_callback(shown, "evaluate", watch.raise_if_received),
            max_detections=settings.val_max_detections,
            positions=positions,
        )

    def save_best(module: StepModule, metrics: DetectionMetrics) -> None:
        save_detector(job, folder / BEST_MODEL, module.step, scores(metrics))

    return Evaluator(
        folder,
        every=every,
        images=len(index),
        detect=detect_share,
        save_best=save_best,
        average=job.average,
        patience=settings.early_stopping,
    )
