"""Feature maps of several strides from a plain vision transformer, which has one.

The simple feature pyramid of ViTDet (Li et al., 2022, "Exploring Plain Vision Transformer Backbones for Object
Detection", §3).

Ours: nothing in it learns. The finer map is interpolated, where ViTDet has transposed convolutions: a backbone is often
frozen here, and each level has a projection that trains (`pyramid.LevelProjections`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

_STRIDES = (8, 16, 32)


class PlainViT(nn.Module):
    """A timm vision transformer: images [B, 3, H, W] to one map of each stride, finest first.

    Images of any size: they are padded with zeros (the mean colour, once normalised) to multiples of the coarsest
    stride. Where the patches have 14 pixels, as in DINOv2, images are scaled by 14/16, so that a patch stands for 16
    pixels.

    Args:
        features: timm's feature extractor, of the last block.
        strides: of the maps.
    """

    def __init__(self, features: Any, strides: tuple[int, ...]) -> None:
        super().__init__()
        # Under timm's own name of it, as in files that were written before there was a pyramid.
        self.model = features.model
        self._indices = list(features.out_indices)
        self.patch: int = features.feature_info.reduction()[-1]
        self.stride = min(_STRIDES, key=lambda stride: abs(stride - self.patch))
        self.strides = strides
        self.width: int = features.feature_info.channels()[-1]

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> [B, C, ceil(H / stride), ceil(W / stride)] of each stride."""
        height, width = images.shape[-2:]
        tokens = self._map(_padded(images, max(*self.strides, self.stride)))
        return [
            _resampled(tokens, self.stride, stride)[..., : _cells(height, stride), : _cells(width, stride)]
            for stride in self.strides
        ]

    def _map(self, images: Tensor) -> Tensor:
        if self.patch != self.stride:
            rows, columns = (size // self.stride * self.patch for size in images.shape[-2:])
            images = F.interpolate(images, size=(rows, columns), mode="bilinear", antialias=False)
        found: list[Tensor] = self.model.forward_intermediates(
            images, indices=self._indices, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        return found[-1]


def has_one_map(features: Any) -> bool:
    """Whether all maps of a timm feature extractor have one stride, and it takes images of any size."""
    model = getattr(features, "model", None)
    return len(set(features.feature_info.reduction())) == 1 and hasattr(model, "forward_intermediates")


def _cells(size: int, stride: int) -> int:
    return (size + stride - 1) // stride


def _padded(images: Tensor, multiple: int) -> Tensor:
    """Images with zeros right and below, up to a multiple of pixels."""
    height, width = images.shape[-2:]
    below, right = (_cells(size, multiple) * multiple - size for size in (height, width))
    return F.pad(images, (0, right, 0, below))


def _resampled(tokens: Tensor, stride: int, wanted: int) -> Tensor:
    """A map of another stride: interpolated to be finer, the greatest value of each square to be coarser."""
    if wanted < stride:
        return F.interpolate(tokens, scale_factor=float(stride // wanted), mode="bilinear")
    return tokens if wanted == stride else F.max_pool2d(tokens, wanted // stride)
