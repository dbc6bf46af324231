"""Invented predictions and targets, and the worker of the two-process test.

Spawned processes import it from here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed

from siamdetr.models.criterion.layer_losses import weighted_sum
from siamdetr.models.criterion.losses import DetectionCriterion
from siamdetr.models.detector import Outputs
from siamdetr.settings.detector import LossSettings
from siamdetr.structures.targets import Targets

CLASSIFIERS = ["softmax", "focal"]
CLASSES = 5


def outputs(images: int, classifier: str, *, layers: int = 3, queries: int = 7, seed: int = 0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, images, queries, CLASSES + (classifier == "softmax"), generator=generator)
    boxes = torch.rand(layers, images, queries, 4, generator=generator) * 0.5 + 0.2
    return Outputs(logits.requires_grad_(), boxes.requires_grad_(), torch.zeros(layers, images, queries, 1))


def targets(counts: list[int], seed: int = 1) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    boxes = [torch.rand(count, 4, generator=generator) * 0.5 + 0.2 for count in counts]
    return Targets.from_lists(boxes, [torch.randint(CLASSES, (count,), generator=generator) for count in counts])


def criterion(classifier: Any, layers: int = 3) -> DetectionCriterion:
    return DetectionCriterion(LossSettings(), classifier, CLASSES, num_layers=layers)


def train_share(rank: int, file: str, classifier: Any, counts: list[list[int]], folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    found, wanted = share(rank, classifier, counts)
    rule = criterion(classifier)
    total = weighted_sum(rule(found, wanted), rule.weights)
    total.backward()
    torch.save((total.detach(), found.logits.grad, found.boxes.grad), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def share(rank: int, classifier: str, counts: list[list[int]]) -> tuple[Outputs, Targets]:
    return outputs(2, classifier, seed=rank), targets(counts[rank], seed=10 + rank)
