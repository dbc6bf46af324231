"""Score the detector during training.

Every process predicts on its share of the images, and the first one scores. The weights with the best AP are kept, and
training may stop when AP no longer improves.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from siamdetr.evaluation.coco_figures import DetectionMetrics
from siamdetr.evaluation.scorer import CocoScorer
from siamdetr.files import EVALUATION_FILE
from siamdetr.models.detector import Detector
from siamdetr.system.atomic_file import atomic_write
from siamdetr.system.distributed import PatientGroup, overwrite_with_first
from siamdetr.system.launcher import launch
from siamdetr.system.signals import Interrupted
from siamdetr.training.callbacks.weight_average import WeightAverage
from siamdetr.training.step_module import StepModule, completed_step

_log = logging.getLogger(__name__)
Detect = Callable[[Detector, range], CocoScorer]  # predicts on the images at these positions


class Evaluator(Callback):
    """Evaluates every `every` steps and at the end, with the averaged weights if there are any.

    A signal during an evaluation interrupts it; the resumed run repeats it before its next step.

    Args:
        images: how many there are to evaluate.
        detect: predicts on some of them.
        save_best: writes best.safetensors; called when the AP is the best so far.
        patience: evaluations without a better AP after which training stops; None: never.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int,
        images: int,
        detect: Detect,
        save_best: Callable[[StepModule, DetectionMetrics], None],
        average: WeightAverage | None,
        patience: int | None,
    ) -> None:
        self.folder = folder
        self.every = every
        self.images = images
        self.detect = detect
        self.save_best = save_best
        self.average = average
        self.patience = patience
        self.best_ap = -1.0
        self.best_step = 0
        self.worse = 0
        self.evaluated_at = 0
        self.metrics: DetectionMetrics | None = None  # of the best weights, in this session
        self.processes: PatientGroup

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Prepare the exchange between the processes; repeat an evaluation that a signal interrupted."""
        self.processes = PatientGroup()
        if self._due(pl_module) and self.evaluated_at != pl_module.step:
            self._evaluate(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Evaluate when it is due."""
        if completed_step(trainer, batch_idx) and self._due(pl_module):
            self._evaluate(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "best_ap": self.best_ap,
            "best_step": self.best_step,
            "worse": self.worse,
            "evaluated_at": self.evaluated_at,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.best_ap, self.best_step = state_dict["best_ap"], state_dict["best_step"]
        self.worse, self.evaluated_at = state_dict["worse"], state_dict["evaluated_at"]

    def _due(self, module: StepModule) -> bool:
        return module.step > 0 and (module.step % self.every == 0 or module.step == module.total_steps)

    def _evaluate(self, trainer: Any, module: StepModule) -> None:
        metrics = self._score(module)
        ap: float | None = self.processes.from_first(metrics.ap if metrics is not None else None)
        if ap is None:
            return
        self.evaluated_at = module.step
        if metrics is not None:
            self._tell(trainer, module.step, metrics)
        if ap > self.best_ap:
            self.best_ap, self.best_step, self.worse = ap, module.step, 0
            if metrics is not None:
                self.metrics = metrics
                self.save_best(module, metrics)
                atomic_write(self.folder / EVALUATION_FILE, lambda file: file.write(_as_json(metrics, module.step)))
        else:
            self.worse += 1
            if self.patience is not None and self.worse >= self.patience:
                _log.info("No better AP for %d evaluations: stopping at step %d.", self.worse, module.step)
                trainer.should_stop = True

    def _score(self, module: StepModule) -> DetectionMetrics | None:
        """The figures, in the first process; None in the others, and after a signal to any of them."""
        detector = module.detector
        scorer: CocoScorer | None = None
        detector.eval()
        overwrite_with_first(detector.buffers())  # a process has its own running means of a batch norm that learns
        try:
            with self.average.applied(detector) if self.average else nullcontext():
                scorer = self.detect(detector, self.processes.share(self.images))
        except Interrupted:
            _log.info("The evaluation at step %d is broken off; --resume auto repeats it.", module.step)
        finally:
            detector.train()
        parts = self.processes.gathered(None if scorer is None else scorer.results())
        whole = [part for part in parts if part is not None]
        if scorer is None or len(whole) < len(parts) or not launch().is_first:
            return None
        for part in whole[1:]:
            scorer.add_results(part)
        return scorer.summarize()

    def _tell(self, trainer: Any, step: int, metrics: DetectionMetrics) -> None:
        figures = {f"val_{name}": value for name, value in scores(metrics).items()}
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step)
        _log.info("step %d: AP %.3f, AP50 %.3f, AR@100 %.3f", step, metrics.ap, metrics.ap50, metrics.ar100)


def scores(metrics: DetectionMetrics) -> dict[str, float]:
    """The plain figures of an evaluation, without the table of classes."""
    return {
        field.name: float(value)
        for field in dataclasses.fields(metrics)
        if field.name != "max_detections" and isinstance(value := getattr(metrics, field.name), int | float)
    }


def _as_json(metrics: DetectionMetrics, step: int) -> bytes:
    rows = [dataclasses.asdict(row) for row in metrics.per_class]
    return json.dumps({"step": step, "metrics": scores(metrics), "per_class": rows}, indent=1).encode()
