"""What losses are divided by: the same figure in all processes, known on the host without asking the device."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor

from siamdetr.structures.targets import Targets


def boxes_per_process(targets: Targets) -> Tensor | float:
    """Number of boxes of a batch, averaged over processes; those of all processes together count at least 1."""
    boxes, _ = mean_over_processes((float(sum(targets.counts)), 0.0), targets.boxes.device)
    return boxes


def mean_over_processes(values: tuple[float, float], device: torch.device) -> tuple[Tensor | float, Tensor | float]:
    """(boxes, class weight) averaged over processes; the boxes of all processes together count at least 1."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return max(values[0], 1.0), values[1]
    both = torch.stack([torch.full((), value, device=device) for value in values])
    torch.distributed.all_reduce(both)
    world = torch.distributed.get_world_size()
    return both[0].clamp(min=1.0) / world, both[1] / world
