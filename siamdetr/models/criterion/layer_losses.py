"""Losses by name: one of each decoder layer, their weights, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def layer_weights(weights: Mapping[str, float], num_layers: int) -> dict[str, float]:
    """The same weights for the last layer (no suffix) and the auxiliary layers (`_0`, `_1`, ...)."""
    aux = {f"{name}_{layer}": weight for layer in range(num_layers - 1) for name, weight in weights.items()}
    return dict(weights) | aux


def name_layers(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split tensors [L] into scalars: the last layer without suffix, the others `_0`, `_1`, ..."""
    named = {name: value[-1] for name, value in values.items()}
    for name, value in values.items():
        named |= {f"{name}_{layer}": one for layer, one in enumerate(value[:-1].unbind())}
    return named


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The total loss: the weighted sum of the losses that have a weight.

    Raises:
        ValueError: no loss has a weight.
    """
    terms = [value * weights[name] for name, value in losses.items() if name in weights]
    if not terms:
        raise ValueError(
            f"weighted_sum: none of the losses {sorted(losses)} has a weight; weights are for {sorted(weights)}"
        )
    return torch.stack(terms).sum()
