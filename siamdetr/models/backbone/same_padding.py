"""Convolutions with TensorFlow's "same" padding that export with any image size."""

from __future__ import annotations

from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F


class SamePadConv2d(nn.Module):
    """A convolution with TensorFlow's "same" padding: the odd pixel is right and below.

    timm computes the padding with a branch on the image's size; this form, for kernels that reach at least as far as
    their stride, has none, so that an exported graph keeps height and width dynamic.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight = convolution.weight
        self.bias = convolution.bias
        self.stride, self.dilation, self.groups = convolution.stride, convolution.dilation, convolution.groups
        self.reach = _reach(convolution)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', ceil(H / stride), ceil(W / stride)]."""
        rows, columns = self._missing(x.shape[-2], 0), self._missing(x.shape[-1], 1)
        padded = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _missing(self, size: int, axis: int) -> int:
        stride = self.stride[axis]
        return (size - 1) // stride * stride + self.reach[axis] - size


def _reach(convolution: nn.Conv2d) -> tuple[int, int]:
    """Pixels from the first to the last that a filter sees."""
    (a, b), (c, d) = convolution.kernel_size, convolution.dilation
    return (a - 1) * c + 1, (b - 1) * d + 1


def make_same_padding_symbolic(module: nn.Module) -> None:
    """Replace timm's "same"-padded convolutions in place, wherever the class above computes the same."""
    for name, child in module.named_children():
        if type(child) is Conv2dSame and all(r >= s for r, s in zip(_reach(child), child.stride, strict=True)):
            setattr(module, name, SamePadConv2d(child))
        else:
            make_same_padding_symbolic(child)
