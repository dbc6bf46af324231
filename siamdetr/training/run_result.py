"""The result of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from siamdetr.evaluation.coco_figures import DetectionMetrics


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        folder: the run folder.
        model: the model file to use: best.safetensors where there was an evaluation, else last.safetensors.
        steps: optimizer steps, of all sessions together.
        seconds: of training, in this session.
        metrics: of the best weights, if this session evaluated.
        fresh: modules that kept random weights because the starting model did not fit them, such as "class_head".
    """

    folder: Path
    model: Path
    steps: int
    seconds: float
    metrics: DetectionMetrics | None = None
    fresh: tuple[str, ...] = ()
