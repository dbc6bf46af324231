"""Loss scenarios of the official code."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from siamdetr.models.criterion.layer_losses import weighted_sum
from siamdetr.models.criterion.losses import DetectionCriterion
from siamdetr.structures.model import Outputs
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


def proposals_of(arrays: dict[str, Any], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [1, B, Q, C] and boxes [1, B, Q, 4] of the proposals that the encoder chose."""
    logits, boxes = (
        torch.from_numpy(arrays[f"{name}/enc_{kind}"])[None].requires_grad_() for kind in ("logits", "boxes")
    )
    return logits, boxes


def two_stage_outputs(
    logits: torch.Tensor, boxes: torch.Tensor, proposed: tuple[torch.Tensor, torch.Tensor]
) -> Outputs:
    """Predictions of all layers and of the encoder; losses do not read the hidden states."""
    hidden = torch.zeros(*logits.shape[:3], 1)
    return Outputs(logits, boxes, hidden, proposals=Outputs(*proposed, hidden[:1]))


def two_stage_gradients_like_the_official_ones(outputs: Outputs, arrays: dict[str, Any], name: str) -> None:
    """The gradients of each layer's predictions, and of the proposals, equal those of the scenario."""
    assert outputs.proposals is not None
    layers = [*(f"aux{i}" for i in range(len(outputs.logits) - 1)), "last"]
    for stage, rows in ((outputs, layers), (outputs.proposals, ["enc"])):
        for tensor, key in ((stage.logits, "pred_logits"), (stage.boxes, "pred_boxes")):
            assert tensor.grad is not None
            for index, layer in enumerate(rows):
                stored = torch.from_numpy(arrays[f"{name}/grad/{layer}/{key}"])
                torch.testing.assert_close(tensor.grad[index], stored, rtol=0, atol=1e-6)


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
    """Compare each loss and their weighted sum with the scenario; returns the sum.

    `weights`: for losses with other names than the criterion's.
    """
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
