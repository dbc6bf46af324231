"""Loss scenarios of the official code."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from siamdetr.models.criterion.losses import DetectionCriterion, weighted_sum
from siamdetr.structures.targets import Targets

FAMILIES = {
    "detr": "detr",
    "conditional": "conditional-detr",
    "dab": "dab-detr",
    "deformable": "deformable-detr",
    "dab_deformable": "dab-deformable-detr",
}


OFFICIAL_NAMES = {"loss_class": "loss_ce"}


def scenario(arrays: dict[str, Any], name: str) -> tuple[torch.Tensor, torch.Tensor, Targets]:
    """Logits [L, B, Q, C], boxes [L, B, Q, 4] (auxiliary layers first) and targets."""
    logits, boxes = (
        torch.from_numpy(np.concatenate([arrays[f"{name}/aux_{kind}"], arrays[f"{name}/pred_{kind}"][None]]))
        for kind in ("logits", "boxes")
    )
    images = range(logits.shape[1])
    targets = Targets.from_lists(
        [torch.from_numpy(arrays[f"{name}/target_boxes_{i}"]) for i in images],
        [torch.from_numpy(arrays[f"{name}/target_labels_{i}"]) for i in images],
    )
    return logits.requires_grad_(), boxes.requires_grad_(), targets


def official_name(name: str) -> str:
    for ours, theirs in OFFICIAL_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def total_like_the_official_one(
    losses: dict[str, torch.Tensor],
    criterion: DetectionCriterion,
    arrays: dict[str, Any],
    *,
    name: str,
    weights: dict[str, float] | None = None,
) -> torch.Tensor:
    """Each loss and their weighted sum are those of the scenario; returns the sum. `weights`: of losses named otherwise."""
    stored = {
        key.removeprefix(f"{name}/loss/"): value for key, value in arrays.items() if key.startswith(f"{name}/loss/")
    }
    ours = {official_name(key): value for key, value in losses.items()}
    assert sorted(ours) == sorted(stored)
    for key, value in stored.items():
        torch.testing.assert_close(ours[key].detach(), torch.tensor(value), rtol=1e-6, atol=1e-6, msg=key)
    total = weighted_sum(losses, criterion.weights if weights is None else weights)
    torch.testing.assert_close(total.detach(), torch.tensor(arrays[f"{name}/total"]), rtol=1e-6, atol=1e-6)
    return total
