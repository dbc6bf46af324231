"""Convolution, batch norm and activation: the block of ResNet-vd and of RT-DETR's encoder."""

from __future__ import annotations

from torch import Tensor, nn

from siamdetr.models.backbone.batchnorm import FrozenBatchNorm2d


class ConvNorm(nn.Module):
    """[B, C, H, W] -> [B, C', ceil(H / stride), ceil(W / stride)].

    Args:
        in_channels: C.
        out_channels: C'.
        kernel: 1 or 3; the convolution is padded to keep the size.
        stride: of the convolution.
        activation: after the norm; None: none.
        frozen: the batch norm never changes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        activation: nn.Module | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=(kernel - 1) // 2, bias=False)
        self.norm = FrozenBatchNorm2d(out_channels) if frozen else nn.BatchNorm2d(out_channels)
        self.act = nn.Identity() if activation is None else activation

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out
