"""Run one cell in any process: train or measure, then write result.json. An interrupted cell resumes."""

from __future__ import annotations

import dataclasses
import json
import logging
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from siamdetr.api import SiamDETR
from siamdetr.data.index import DetectionIndex
from siamdetr.data.readers.recognise import find_source
from siamdetr.drawing.html_page import read_metrics
from siamdetr.evaluation.classes import OBJECT
from siamdetr.evaluation.coco import evaluate
from siamdetr.files import LAST_CHECKPOINT, PREVIOUS_CHECKPOINT
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.models.backbone.normalization import backbone_normalization
from siamdetr.models.detector import Detector
from siamdetr.pretext.run_settings import PretrainSettings
from siamdetr.settings.training import FinetuneSettings
from siamdetr.study.cell import SCRATCH, Cell
from siamdetr.study.pictures import save_qualitative
from siamdetr.study.settings import StudySettings, finetune_settings, images_of, pretrain_settings
from siamdetr.system.atomic_file import atomic_text
from siamdetr.system.processes import peak_mib
from siamdetr.system.signals import Interrupted, SignalWatch
from siamdetr.training.callbacks.evaluator import scores
from siamdetr.training.finetune import finetune
from siamdetr.training.initial_weights import read_start, start
from siamdetr.training.pretrain import pretrain
from siamdetr.training.pretrain_module import class_agnostic
from siamdetr.training.pretrain_setup import pretraining_detector

RESULT_FILE = "result.json"
ERROR_FILE = "error.txt"
CELLS = "cells"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CellTask:
    """A cell and everything it needs, for any process.

    Attributes:
        folder: of the study; absolute.
        num_train: labelled images of the whole train part.
        threads: of PyTorch; None: its default.
    """

    cell: Cell
    study: StudySettings
    folder: Path
    num_train: int
    device: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class CellResult:
    """The result of a cell.

    Attributes:
        metrics: figures by name, AP and AR in 0..1.
        steps: optimizer steps.
        seconds: of the whole cell, over all sessions.
        curve: finetune: (epoch, AP, AP50) of each evaluation on the val part.
    """

    cell: Cell
    metrics: dict[str, float]
    steps: int = 0
    seconds: float = 0.0
    curve: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class CellOutcome:
    """A result, or the error that prevented it."""

    cell: Cell
    result: CellResult | None = None
    error: str = ""
    interrupted: bool = False


def cell_folder(folder: Path, cell: Cell) -> Path:
    """The folder of a cell of the study in `folder`; runs are ordinary run folders."""
    return folder / CELLS / cell.key


def read_result(folder: Path, cell: Cell) -> CellResult | None:
    """The result of a finished cell; None: it is not finished."""
    path = cell_folder(folder, cell) / RESULT_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    curve = tuple((float(epoch), float(ap), float(ap50)) for epoch, ap, ap50 in content["curve"])
    return CellResult(cell, content["metrics"], content["steps"], content["seconds"], curve)


def run_cell(task: CellTask) -> CellOutcome:
    """Run a cell. An error is kept for the report and does not stop the study.

    SIGINT and SIGTERM stop it; the training so far is saved.
    """
    started = time.perf_counter()
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    place = cell_folder(task.folder, task.cell)
    place.mkdir(parents=True, exist_ok=True)
    with SignalWatch() as watch:
        try:
            result = _WORK[task.cell.kind](task, place, watch)
        except Interrupted as stop:
            return CellOutcome(task.cell, error=str(stop), interrupted=True)
        except Exception as error:  # whatever it is, the other cells continue
            text = f"{type(error).__name__}: {error}"
            if watch.received is not None:  # which may have ended its readers (`leave_signals_to_parent`)
                return CellOutcome(task.cell, error=text, interrupted=True)
            _log.exception("%s failed", task.cell.key)
            atomic_text(place / ERROR_FILE, text)
            return CellOutcome(task.cell, error=text)
    result = dataclasses.replace(result, seconds=time.perf_counter() - started)
    _save(place, result)
    return CellOutcome(task.cell, result)


def scored_index(study: StudySettings) -> tuple[str, DetectionIndex]:
    """The scored part and its images: test if there is one, else val."""
    source = find_source(study.data[0], study.format)
    split = study.test_split or source.first_split(("test", "val")) or study.val_split
    index = source.open(split)
    if study.score_limit is not None:
        index = index.subset(range(min(study.score_limit, len(index))))
    return split or "all", index


def score(study: StudySettings, model: SiamDETR, watch: SignalWatch) -> dict[str, float]:
    """Score a model on the scored part.

    Raises:
        Interrupted: a signal came.
    """
    return scores(evaluate(model, scored_index(study)[1], progress=lambda done, total: watch.raise_if_received()))


def _pretrain(task: CellTask, place: Path, watch: SignalWatch) -> CellResult:
    result = pretrain(_pretrain_settings(task, place), resume="auto")
    rows = [row for row in read_metrics(place) if "loss" in row]
    return CellResult(task.cell, {"loss": rows[-1]["loss"]} if rows else {}, result.steps)


def _finetune(task: CellTask, place: Path, watch: SignalWatch) -> CellResult:
    source = task.cell.source
    init = None if source is None else cell_folder(task.folder, source)
    settings = finetune_settings(task.study, task.cell, place, init=init, num_train=task.num_train, device=task.device)
    result = finetune(settings, resume="auto")
    metrics = score(task.study, SiamDETR.load(result.model, device=_device(task)), watch)
    return CellResult(task.cell, metrics, result.steps, curve=_curve(task, place, settings))


def _agnostic(task: CellTask, place: Path, watch: SignalWatch) -> CellResult:
    model = _untrained(task, place) if task.cell.init == SCRATCH else _pretrained(task)
    return CellResult(task.cell, score(task.study, model, watch))


def _cost(task: CellTask, place: Path, watch: SignalWatch) -> CellResult:
    settings = _pretrain_settings(task, place)
    pretrain(settings, resume="auto")
    rows = [row for row in read_metrics(place) if "images_per_second" in row]
    per_step = [settings.batch_size * settings.grad_accum / row["images_per_second"] for row in rows[len(rows) // 4 :]]
    on_gpu = max((row.get("memory_gib", 0.0) for row in rows), default=0.0)
    return CellResult(
        task.cell,
        {
            "seconds_per_step": statistics.median(per_step),
            "memory_mib": 2**10 * on_gpu if on_gpu else peak_mib(),
            "on_gpu": float(on_gpu > 0),
            "batch_size": float(settings.batch_size),
        },
        len(rows),
    )


def _qualitative(task: CellTask, place: Path, watch: SignalWatch) -> CellResult:
    _, index = scored_index(task.study)
    shown = [i for i in range(len(index)) if index.box_counts()[i] > 0][: task.study.shown]
    save_qualitative(_pretrained(task), index.subset(shown), place)
    return CellResult(task.cell, {})


_WORK = {
    "pretrain": _pretrain,
    "finetune": _finetune,
    "agnostic": _agnostic,
    "cost": _cost,
    "qualitative": _qualitative,
}


def _pretrain_settings(task: CellTask, place: Path) -> PretrainSettings:
    return pretrain_settings(task.study, task.cell, place, device=task.device)


def _pretrained(task: CellTask) -> SiamDETR:
    source = task.cell.source
    assert source is not None
    return SiamDETR.load(cell_folder(task.folder, source), device=_device(task))


def _untrained(task: CellTask, place: Path) -> SiamDETR:
    """The detector before pretraining: the study's `start`, or a pretrained backbone and random weights."""
    settings = _pretrain_settings(dataclasses.replace(task, cell=Cell("pretrain", task.study.methods[0])), place)
    torch.manual_seed(settings.seed)
    detector = Detector(pretraining_detector(settings))
    start(detector, settings, (OBJECT,), resumed=False)
    if settings.init is None:
        normalization = backbone_normalization(settings.detector.backbone)
    else:
        normalization = read_start(settings.init).metadata.preprocessing.normalization
    spec = PreprocessingSpec.from_size(settings.of_method.size).normalized_by(normalization)
    return SiamDETR.from_parts(
        class_agnostic(detector).eval(), class_names=(OBJECT,), preprocessing=spec, class_agnostic=True
    )


def _device(task: CellTask) -> str:
    if task.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return task.device


def _curve(task: CellTask, place: Path, settings: FinetuneSettings) -> tuple[tuple[float, float, float], ...]:
    per_epoch = images_of(task.num_train, task.cell.fraction) / (settings.batch_size * settings.grad_accum)
    return tuple(
        (row["step"] / per_epoch, row["val_ap"], row["val_ap50"]) for row in read_metrics(place) if "val_ap" in row
    )


def _save(place: Path, result: CellResult) -> None:
    """Write the result, then remove the files that only a resume needs."""
    content: dict[str, Any] = {
        "cell": dataclasses.asdict(result.cell),
        "metrics": result.metrics,
        "steps": result.steps,
        "seconds": round(result.seconds, 3),
        "curve": result.curve,
    }
    atomic_text(place / RESULT_FILE, json.dumps(content, indent=1))
    for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT, ERROR_FILE):
        (place / name).unlink(missing_ok=True)
