"""Dropout (Srivastava et al. 2014) that is cheap on a processor.

PyTorch draws a mask there one element after the other, in one thread, which takes a tenth of a training step. Here a
draw of 64 bits decides four elements. Masks are drawn, and applied to the hidden layer of a feed-forward network, a
piece at a time that fits the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

_CHANCES = 2**16  # of an element: 16 random bits
_PIECE = 2**18  # elements; 1 MiB of float32


class Dropout(nn.Dropout):
    """As PyTorch's; on a processor its probability is a multiple of 1/65536."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape -> the same."""
        return drop_out(input, self.p if self.training else 0.0)


def drop_out(x: Tensor, probability: float) -> Tensor:
    """Set elements to zero with a probability in 0..1, and enlarge the others so that the mean stays."""
    if probability == 0:
        return x
    if not draws_here(x):
        return F.dropout(x, probability)
    multipliers = torch.empty(x.shape, dtype=x.dtype)
    for piece, own in _draw(multipliers, probability):
        piece.copy_(own)
    return x * multipliers


def relu_and_drop_out(x: Tensor, probability: float) -> Tensor:
    """`drop_out(relu(x))`; on a processor x is overwritten, so nothing else may need it."""
    if probability == 0 or not draws_here(x):
        return drop_out(x.relu(), probability)
    out: Tensor = _ReluAndDropout.apply(x.contiguous(), probability)
    return out


class _ReluAndDropout(torch.autograd.Function):
    """Keeps its output alone: an element is above zero exactly if the gradient passes it."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, probability: float) -> Tensor:
        """Any shape -> the same, in the memory of x."""
        ctx.mark_dirty(x)
        for piece, own in _draw(x, probability):
            piece.relu_().mul_(own)
        ctx.save_for_backward(x)
        ctx.scale = _scale(probability)  # type: ignore[attr-defined]
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        """Gradient of x."""
        (out,) = ctx.saved_tensors
        upstream = upstream.contiguous()
        found = torch.empty_like(upstream)
        for piece, of_piece, own in zip(_pieces(found), _pieces(upstream), _pieces(out), strict=True):
            torch.ops.aten.threshold_backward(of_piece, own, 0, grad_input=piece)
            piece.mul_(ctx.scale)
        return found, None


def draws_here(x: Tensor) -> bool:
    """Whether masks for x are drawn by this module, not by PyTorch."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    pieces: tuple[Tensor, ...] = torch.split(x.view(-1), _PIECE)
    return pieces


def _draw(x: Tensor, probability: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of x, each with the multipliers of its elements: 0, or 1 / (1 - probability)."""
    bits = np.random.SFC64(int(torch.randint(2**63 - 1, (), device="cpu")))
    least = _dropped(probability) - _CHANCES // 2
    for piece in _pieces(x):
        drawn = torch.from_numpy(bits.random_raw(len(piece) // 4 + 1).view(np.int16)[: len(piece)])
        yield piece, torch.where(drawn >= least, _scale(probability), 0.0)


def _dropped(probability: float) -> int:
    return min(round(probability * _CHANCES), _CHANCES - 1)


def _scale(probability: float) -> float:
    return _CHANCES / (_CHANCES - _dropped(probability))
