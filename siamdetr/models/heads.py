"""Small stacks of linear layers: prediction heads and the feed-forward part of a transformer layer; and what a box is."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siamdetr.boxes import inverse_sigmoid
from siamdetr.settings.detector import Activation


class MLP(nn.Module):
    """`num_layers` linear layers with ReLU between them: [..., in_dim] -> [..., out_dim]."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, *, num_layers: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        out: Tensor = self.layers[-1](x)
        return out


class LayerHeads(nn.Module):
    """A head of its own for each decoder layer, and, of a two-stage detector, one more for the proposals."""

    def __init__(self, heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, hidden: Tensor) -> Tensor:
        """[L, ..., D] of L layers -> [L, ..., K]."""
        return torch.stack([head(layer) for head, layer in zip(self.heads, hidden, strict=False)])


def each_head(head: nn.Module) -> list[nn.Module]:
    """The heads of all layers; one where they share it."""
    return list(head.heads) if isinstance(head, LayerHeads) else [head]


class FeedForward(nn.Module):
    """The position-wise part of a transformer layer: norm(x + W2 f(W1 x)), [B, T, D] -> [B, T, D].

    With `pre_norm` it is x + W2 f(W1 norm(x)). f is ReLU, or PReLU with one learned slope (DAB-DETR).
    """

    def __init__(
        self, dim: int, hidden_dim: int, dropout: float, *, activation: Activation = "relu", pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.expand = nn.Linear(dim, hidden_dim)
        self.contract = nn.Linear(hidden_dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.activation = nn.PReLU() if activation == "prelu" else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        start = self.norm(x) if self.pre_norm else x
        out: Tensor = x + self.dropout(self.contract(self.dropout(self.activation(self.expand(start)))))
        return out if self.pre_norm else self.norm(out)


def place_boxes(offsets: Tensor, references: Tensor | None, *, eps: float) -> Tensor:
    """Boxes: sigmoid(offsets + inverse_sigmoid(references)).

    Ends in float32 at least: in half precision a box is up to a quarter of a pixel off.

    Args:
        offsets: [..., 4] from a box head.
        references: [..., 2 | 4] (cx, cy[, w, h]) fractions that the offsets start from; None: from nothing (vanilla DETR).
        eps: distance that references are kept from 0 and 1.
    Returns:
        [..., 4] (cx, cy, w, h) fractions.
    """
    offsets = _at_least_float32(offsets)
    if references is not None:
        start = inverse_sigmoid(_at_least_float32(references), eps)
        offsets = offsets + F.pad(start, (0, 4 - start.shape[-1]))
    return offsets.sigmoid()


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
