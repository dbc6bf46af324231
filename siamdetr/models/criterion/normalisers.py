"""Normalisers of the losses: equal in all processes, and known without synchronising the device."""

from __future__ import annotations

import torch
from torch import Tensor

from siamdetr.structures.targets import Targets
from siamdetr.system import distributed


def boxes_per_process(targets: Targets) -> Tensor | float:
    """The number of boxes per batch, averaged over the window and over processes.

    The total is at least 1.
    """
    return mean_over_window(targets, 0.0, targets.boxes.device)[0]


def mean_over_window(
    targets: Targets, class_weight: float, device: torch.device
) -> tuple[Tensor | float, Tensor | float]:
    """(boxes, class weight) of the targets' window, averaged over its batches and over processes.

    The total number of boxes is at least 1.

    The gradients of a window are averaged over its batches and processes. Divided by these means, they are those of one
    batch with all images of the window.

    Args:
        targets: of one batch.
        class_weight: summed over the window.
        device: of the result, where several processes share it.
    """
    boxes, batches = float(sum(map(sum, targets.window_counts))), len(targets.window_counts)
    if not distributed.started():
        return max(boxes, 1.0) / batches, class_weight / batches
    both = distributed.total(torch.stack([torch.full((), value, device=device) for value in (boxes, class_weight)]))
    batches *= distributed.world_size()
    return both[0].clamp(min=1.0) / batches, both[1] / batches
