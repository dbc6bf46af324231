"""AdamW with two groups (backbone, rest), frozen parameters, and the learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from siamdetr.models.detector import Detector
from siamdetr.settings.training import Freeze, OptimizerSettings, ScheduleSettings

HEADS = ("class_head", "box_head")
_SAMPLING = (".offsets.", ".reference_head.")  # deformable: reference points and sampling offsets


def freeze(detector: Detector, what: Freeze) -> tuple[str, ...]:
    """Switch off the gradients of the backbone, or of all but the heads.

    Returns the names of what still learns.
    """
    for name, parameter in detector.named_parameters():
        in_backbone, in_head = name.startswith("backbone."), name.startswith(HEADS)
        if (what == "backbone" and in_backbone) or (what == "body" and not in_head):
            parameter.requires_grad_(False)
    return tuple(name for name, parameter in detector.named_parameters() if parameter.requires_grad)


def build_optimizer(module: nn.Module, settings: OptimizerSettings, *, fused: bool) -> torch.optim.AdamW:
    """AdamW over everything in `module` that learns.

    Parameters under a `backbone` have their own rate, sampling layers a factor.

    Weight decay is on every parameter, as in the official code. A backbone rate of 0 leaves the backbone out.

    Raises:
        ValueError: nothing is left to learn.
    """
    backbone: list[nn.Parameter] = []
    sampling: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            samples = settings.sampling_factor != 1 and any(part in name for part in _SAMPLING)
            (backbone if "backbone." in name else sampling if samples else rest).append(parameter)
    groups: list[dict[str, Any]] = [{"params": rest, "lr": settings.lr}]
    groups.append({"params": sampling, "lr": settings.lr * settings.sampling_factor})
    if settings.lr_backbone > 0 and backbone:
        groups.append({"params": backbone, "lr": settings.lr_backbone})
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("nothing is left to learn: every parameter is frozen; choose another --freeze")
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=fused)


def rate_factor(settings: ScheduleSettings, total: int) -> Callable[[int], float]:
    """The factor on the learning rate at step 0..total.

    One-cycle rises from 1/25 (Smith 2017, arXiv:1708.07120).
    """
    onecycle = settings.name == "onecycle"
    warmup = round((settings.warmup or (0.3 if onecycle else 0.0)) * total)

    def factor(step: int) -> float:
        if step < warmup:
            return _cosine(step / warmup, 1 / 25, 1.0) if onecycle else (step + 1) / (warmup + 1)
        if settings.name == "constant":
            return 1.0
        if settings.name == "step":
            return 1.0 if step < settings.drop_at * total else 0.1
        return _cosine(min(1.0, (step - warmup) / max(1, total - warmup)), 1.0, settings.final)

    return factor


def _cosine(along: float, start: float, end: float) -> float:
    """Half a cosine from `start` (along = 0) to `end` (along = 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * along)) / 2


def build_schedule(optimizer: torch.optim.Optimizer, settings: ScheduleSettings, total: int) -> LambdaLR:
    """The schedule, stepped once per optimizer step; its state is its counter."""
    return LambdaLR(optimizer, rate_factor(settings, total))
