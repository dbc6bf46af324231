"""Feature maps of several levels, and their projection to one width (Deformable DETR, §A.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

Maps = Tensor | tuple[Tensor, ...]  # one map [B, C, h, w], or one a level, finest first


def as_levels(maps: Maps) -> tuple[Tensor, ...]:
    """The maps as a tuple, also if there is only one."""
    return (maps,) if isinstance(maps, Tensor) else maps


class LastMapProjection(nn.Conv2d):
    """The backbone's last map to one map of width `dim`, for detectors with a single feature level."""

    def __init__(self, channels: tuple[int, ...], dim: int) -> None:
        super().__init__(channels[-1], dim, kernel_size=1)

    def forward(self, maps: Maps) -> tuple[Tensor, ...]:  # type: ignore[override]  # of maps, as `LevelProjections`
        """[B, C, h, w] -> one [B, D, h, w]."""
        return (super().forward(as_levels(maps)[-1]),)


class LevelProjections(nn.Module):
    """Backbone maps to `levels` maps of one width, each normalised in groups.

    Levels beyond the backbone's are strided convolutions, the first of them of the last *backbone* map, not of a
    projected one.

    Args:
        channels: of the backbone's maps, finest first; at most `levels`.
        dim: D.
        levels: how many maps come out.

    Ours: any width (the number of groups, officially 32, is the greatest common divisor of 32 and the width).
    """

    def __init__(self, channels: tuple[int, ...], dim: int, levels: int) -> None:
        super().__init__()
        extra = levels - len(channels)
        sources = [channels[-1], *[dim] * (extra - 1)] if extra > 0 else []
        convolutions = [nn.Conv2d(width, dim, kernel_size=1) for width in channels]
        convolutions += [nn.Conv2d(width, dim, kernel_size=3, stride=2, padding=1) for width in sources]
        self.levels = nn.ModuleList(
            nn.Sequential(convolution, nn.GroupNorm(math.gcd(32, dim), dim)) for convolution in convolutions
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as the official code: Xavier, biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Maps) -> tuple[Tensor, ...]:
        """[B, C, h, w] of each backbone level -> [B, D, h, w] of each level."""
        given = as_levels(maps)
        projected: list[Tensor] = []
        for index, level in enumerate(self.levels):
            source = given[index] if index < len(given) else given[-1] if index == len(given) else projected[-1]
            projected.append(level(source))
        return tuple(projected)
