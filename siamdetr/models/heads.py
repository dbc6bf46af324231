"""Prediction heads, feed-forward networks, and the placing of boxes from offsets and references."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siamdetr.boxes import inverse_sigmoid
from siamdetr.models.dropout import Dropout, relu_and_drop_out
from siamdetr.settings.detector import Activation, DetectorSettings

# Focal loss: every query starts at this probability for every class (Lin et al. 2017, arXiv:1708.02002, §3.3).
_PRIOR = 0.01


FeedForwardActivation = Activation | Literal["gelu"]


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
    """A separate head for each decoder layer, and one more for encoder proposals if there are any.

    Args:
        heads: of the layers, then that of the proposals.
        shared: the first serves all layers.
    """

    def __init__(self, heads: Iterable[nn.Module], *, shared: bool = False) -> None:
        super().__init__()
        self.heads, self.shared = nn.ModuleList(heads), shared

    def of_layer(self, layer: int) -> nn.Module:
        """The head of one decoder layer."""
        return self.heads[0 if self.shared else layer]

    def forward(self, hidden: Tensor) -> Tensor:
        """[L, ..., D] of L layers -> [L, ..., K]."""
        if self.shared:
            together: Tensor = self.heads[0](hidden)
            return together
        return torch.stack([head(layer) for head, layer in zip(self.heads, hidden, strict=False)])


def each_head(head: nn.Module) -> list[nn.Module]:
    """The heads of all layers; a single one if they share it."""
    return list(head.heads) if isinstance(head, LayerHeads) else [head]


@dataclass(frozen=True)
class Heads:
    """The two prediction heads of a detector, as its decoder uses them."""

    class_head: nn.Module  # [L, ..., D] of all layers -> [L, ..., C] logits
    box_head: nn.Module  # [L, ..., D] of all layers -> [L, ..., 4] offsets

    def offsets(self, hidden: Tensor, layer: int) -> Tensor:
        """[..., D] of one decoder layer -> [..., 4] offsets of its boxes."""
        head = self.box_head.of_layer(layer) if isinstance(self.box_head, LayerHeads) else self.box_head
        offsets: Tensor = head(hidden)
        return offsets

    def of_proposals(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[..., D] features of cells -> [..., C] logits and [..., 4] offsets of the boxes proposed there."""
        return each_head(self.class_head)[-1](features), each_head(self.box_head)[-1](features)


def build_class_head(settings: DetectorSettings) -> nn.Linear:
    """[..., D] -> [..., C], plus 1 for "no object" with softmax; with focal loss it starts at the prior."""
    head = nn.Linear(settings.dim, settings.num_classes + (settings.classifier == "softmax"))
    if settings.classifier == "focal":
        nn.init.constant_(head.bias, -math.log((1 - _PRIOR) / _PRIOR))
    return head


def build_box_head(settings: DetectorSettings, *, first_size: float = 0.0, starts_at_reference: bool = True) -> MLP:
    """[..., D] -> [..., 4] offsets.

    Args:
        settings: of the detector.
        first_size: initial offset of the logits of width and height.
        starts_at_reference: its last layer starts at zero: the first boxes lie on their references.
    """
    head = MLP(settings.dim, settings.dim, 4, num_layers=3)
    if starts_at_reference:
        last = head.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        last.bias = nn.Parameter(torch.tensor([0.0, 0.0, first_size, first_size]))
    return head


def shared_heads(
    settings: DetectorSettings, *, first_size: float = 0.0, starts_at_reference: bool = True, proposals: bool = False
) -> Heads:
    """One class head and one box head for all decoder layers.

    With `proposals` there is another pair for the encoder's proposals.

    The other arguments are those of `build_box_head`.
    """
    count = 1 + proposals
    classes = [build_class_head(settings) for _ in range(count)]
    boxes = [
        build_box_head(settings, first_size=first_size, starts_at_reference=starts_at_reference) for _ in range(count)
    ]
    if not proposals:
        return Heads(classes[0], boxes[0])
    return Heads(LayerHeads(classes, shared=True), LayerHeads(boxes, shared=True))


def layer_heads(settings: DetectorSettings, *, first_size: float = 0.0, proposals: bool = False) -> Heads:
    """Separate heads for each decoder layer; the first box head has `first_size`.

    Args:
        settings: of the detector.
        first_size: as in `build_box_head`.
        proposals: one more of each, for the encoder's proposals.
    """
    count = settings.decoder_layers + proposals
    classes = LayerHeads(build_class_head(settings) for _ in range(count))
    sizes = [first_size, *[0.0] * (count - 1)]
    return Heads(classes, LayerHeads(build_box_head(settings, first_size=size) for size in sizes))


class FeedForward(nn.Module):
    """The position-wise part of a transformer layer: norm(x + W2 f(W1 x)), [B, T, D] -> [B, T, D].

    With `pre_norm` it is x + W2 f(W1 norm(x)). f is ReLU, PReLU with one learned slope (DAB-DETR), or GELU (RT-DETR's
    encoder).
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        dropout: float,
        *,
        activation: FeedForwardActivation = "relu",
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.expand = nn.Linear(dim, hidden_dim)
        self.contract = nn.Linear(hidden_dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)
        self.activation = {"relu": nn.ReLU, "prelu": nn.PReLU, "gelu": nn.GELU}[activation]()

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.expand(self.norm(x) if self.pre_norm else x)
        if isinstance(self.activation, nn.ReLU):
            hidden = relu_and_drop_out(hidden, self.dropout.p if self.training else 0.0)
        else:
            hidden = self.dropout(self.activation(hidden))
        out: Tensor = x + self.dropout(self.contract(hidden))
        return out if self.pre_norm else self.norm(out)


def place_boxes(offsets: Tensor, references: Tensor | None, *, eps: float = 1e-5) -> Tensor:
    """Boxes: sigmoid(offsets + inverse_sigmoid(references)).

    The result is at least float32: in half precision a box is up to a quarter of a pixel off.

    Args:
        offsets: [..., 4] from a box head.
        references: [..., 2 | 4] (cx, cy[, w, h]) fractions that the offsets start from; None: from nothing (vanilla
            DETR).
        eps: distance that references are kept from 0 and 1; DAB-DETR and its successors have 1e-3.
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
