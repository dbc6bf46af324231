"""Exponential moving average of the weights, which is scored and saved instead of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from siamdetr.models.detector import Detector
from siamdetr.training.step_module import completed_step


class WeightAverage(Callback):
    """Exponential moving average of the weights: `shadow ← d·shadow + (1-d)·weights` after each step.

    d = min(decay, (1+t)/(10+t)), so that short runs forget their start.

    Only trainable parameters are averaged; all else is the detector's own. The average is saved in every checkpoint,
    because a resumed run must continue with it: no loss would show that it was lost.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start from the weights as they are, or move the loaded average to their device."""
        device = pl_module.device
        weights = _learning(pl_module.detector)
        if not self.shadow:
            self.shadow = {name: weight.detach().clone() for name, weight in weights.items()}
        self.shadow = {name: value.to(device) for name, value in self.shadow.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the average."""
        if completed_step(trainer, batch_idx):
            self.updates += 1
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            weights = _learning(pl_module.detector)
            torch._foreach_lerp_(list(self.shadow.values()), [weights[name] for name in self.shadow], 1 - decay)

    @contextmanager
    def applied(self, detector: Detector) -> Iterator[None]:
        """Give the detector the averaged weights inside the block."""
        weights = _learning(detector)
        raw = {name: weights[name].detach().clone() for name in self.shadow}
        with torch.no_grad():
            for name, value in self.shadow.items():
                weights[name].copy_(value)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in raw.items():
                    weights[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.updates, self.shadow = state_dict["updates"], dict(state_dict["shadow"])


def _learning(detector: Detector) -> dict[str, Tensor]:
    return {name: weight for name, weight in detector.named_parameters() if weight.requires_grad}
