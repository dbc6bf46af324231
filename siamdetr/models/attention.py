"""Multi-head attention, and a way to record the attention maps of a decoder.

Attention runs through PyTorch's fused kernel. The softmax is written out with dropout on a processor, whose masks
PyTorch draws slowly, and while `record_attention` is open, which keeps its weights, in the cross-attention of the
decoder layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siamdetr.models.dropout import draws_here, drop_out

# Large enough that exp() is exactly 0 beside any score, small enough for float16. Finite, so that an image that is all
# padding gives a mean instead of NaN, and so that exported graphs stay without infinities.
_MASKED = -1e4


class AttentionRecorder:
    """Stores the attention of layer `index` in the list of `record_attention`."""

    def __init__(self, maps: list[Tensor], index: int) -> None:
        self._maps = maps
        self._index = index

    def record(self, weights: Tensor) -> None:
        """Keep [B, heads, Q, H, W]; a later pass through the model replaces the maps of an earlier one."""
        if len(self._maps) > self._index:
            self._maps[self._index] = weights
        else:
            self._maps.append(weights)


class Observed(nn.Module):
    """Attention that `record_attention` can record; `observable` marks a decoder's cross-attention."""

    def __init__(self, *, observable: bool) -> None:
        super().__init__()
        self.observable = observable
        self.recorder: AttentionRecorder | None = None


class ScaledDotProduct(Observed):
    """softmax(q kᵀ / sqrt(d)) v per head. Has no parameters."""

    def __init__(self, dropout: float, *, observable: bool = False) -> None:
        super().__init__(observable=observable)
        self.dropout = dropout

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, bias: Tensor | None, grid: tuple[int, int] | None = None
    ) -> Tensor:
        """
        Args:
            query: [B, heads, Q, d].
            key: [B, heads, K, d].
            value: [B, heads, K, e]; e may differ from d.
            bias: added to the scores; broadcasts to [B, heads, Q, K].
            grid: (H, W) with H * W = K, for recording.
        Returns:
            [B, Q, heads * e].
        """
        dropout = self.dropout if self.training else 0.0
        bias = None if bias is None else bias.to(query.dtype)
        if (self.recorder is None or grid is None) and not (dropout and draws_here(query)):
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        else:
            scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
            weights = (scores if bias is None else scores + bias).softmax(-1)  # [B, heads, Q, K]
            if self.recorder is not None and grid is not None:
                self.recorder.record(weights.detach().reshape(*weights.shape[:-1], *grid))
            mixed = drop_out(weights, dropout) @ value
        return mixed.transpose(1, 2).flatten(2)


class MultiHeadAttention(nn.Module):
    """Attention with its four projections (Vaswani et al. 2017)."""

    def __init__(self, dim: int, heads: int, dropout: float, *, observable: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.attend = ScaledDotProduct(dropout, observable=observable)
        self.initialize()

    def initialize(self) -> None:
        """Initialise as PyTorch's packed form: the three projections count as one matrix of 3D outputs."""
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight, gain=1 / math.sqrt(2))
            nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, bias: Tensor | None, grid: tuple[int, int] | None = None
    ) -> Tensor:
        """[B, Q, D], [B, K, D], [B, K, D] -> [B, Q, D]; `bias` and `grid` as in `ScaledDotProduct`."""
        mixed = self.attend(
            split_heads(self.query(query), self.heads),
            split_heads(self.key(key), self.heads),
            split_heads(self.value(value), self.heads),
            bias=bias,
            grid=grid,
        )
        out: Tensor = self.out(mixed)
        return out


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, D] -> [B, heads, T, D / heads]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).transpose(1, 2)


def mask_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A bool mask, True = must not be attended to, as a term to add to attention scores; None stays None."""
    return None if mask is None else mask.to(dtype) * _MASKED


def padding_bias(padding: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """[B, K] bool, True = padded -> [B, 1, 1, K] to add to attention scores; None stays None."""
    return None if padding is None else mask_bias(padding, dtype)[:, None, None, :]  # type: ignore[index]


@contextmanager
def record_attention(detector: nn.Module) -> Iterator[list[Tensor]]:
    """Record the cross-attention maps of a detector's decoder.

    Yields: A list which each pass through the detector fills anew: per decoder layer a detached [B, heads, Q, H, W], H
        and W in cells of the feature map; with several levels, of the finest. Over H and W the values of a query and
        head sum to 1. Of deformable attention the sampling points of all levels are drawn with their weights, each on
        the four cells around it; points outside the map are missing from the sum.

    Example:
        with record_attention(detector) as maps:
            detector(images)
        maps[-1].mean(1)  # [B, Q, H, W]
    """
    watched = [m for m in detector.modules() if isinstance(m, Observed) and m.observable]
    maps: list[Tensor] = []
    for index, module in enumerate(watched):
        module.recorder = AttentionRecorder(maps, index)
    try:
        yield maps
    finally:
        for module in watched:
            module.recorder = None
