"""Blocks of RT-DETR's encoder: re-parametrised convolutions in a cross-stage partial block.

RepVGG (Ding et al. 2021, arXiv:2101.03697) in CSPNet (Wang et al. 2020, arXiv:1911.11929).

In training a RepVGG block is a 3x3 and a 1x1 convolution side by side, each with a batch norm; for deployment both
become one 3x3 convolution that computes the same.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siamdetr.models.backbone.conv_norm import ConvNorm


class RepVgg(nn.Module):
    """silu(norm(conv3x3) + norm(conv1x1)), [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return F.silu(self.conv1(x) + self.conv2(x))

    def fused(self) -> nn.Module:
        """One convolution and the activation: the same function in evaluation mode."""
        weight, bias = _folded(self.conv1)
        other, shift = _folded(self.conv2)
        convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        convolution.weight = nn.Parameter(weight + F.pad(other, (1, 1, 1, 1)), requires_grad=False)
        convolution.bias = nn.Parameter(bias + shift, requires_grad=False)
        return nn.Sequential(convolution, nn.SiLU())


class CrossStagePartial(nn.Module):
    """Half of the channels go through RepVGG blocks, half around them: [B, C, H, W] -> [B, C', H, W].

    Args:
        in_channels: C.
        out_channels: C'.
        blocks: RepVGG blocks.
        expansion: width of the halves, as a share of C'.
    """

    def __init__(self, in_channels: int, out_channels: int, *, blocks: int, expansion: float) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.conv1 = ConvNorm(in_channels, hidden, 1, activation=nn.SiLU())
        self.conv2 = ConvNorm(in_channels, hidden, 1, activation=nn.SiLU())
        self.bottlenecks = nn.Sequential(*(RepVgg(hidden) for _ in range(blocks)))
        self.conv3 = (
            nn.Identity() if hidden == out_channels else ConvNorm(hidden, out_channels, 1, activation=nn.SiLU())
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.conv3(self.bottlenecks(self.conv1(x)) + self.conv2(x))
        return out


@torch.no_grad()
def fuse_branches(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode, each of whose RepVGG blocks is one convolution.

    A module without such blocks is copied, too.
    """
    fused = copy.deepcopy(module).eval()
    _fuse(fused)
    return fused


def _fuse(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, RepVgg):
            setattr(module, name, child.fused())
        else:
            _fuse(child)


def _folded(block: ConvNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with its batch norm's statistics in it."""
    norm = block.norm
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return block.conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
