"""Sine positions of feature cells and points (Vaswani et al. 2017; DETR, arXiv:2005.12872).

The y half comes first. Computed in float32 whatever the precision of the model: half precision errs by 2.5e-3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TWO_PI = 2 * math.pi


def image_positions(padding: Tensor, dim: int, *, temperature: float = 10000.0, shift: float = 0.0) -> Tensor:
    """Positions of feature cells as fractions of the unpadded image.

    Args:
        padding: [B, H, W] bool, True = padded.
        dim: D, divisible by 4.
        temperature: the longest wavelength.
        shift: added to cell numbers 1, 2, ...; Deformable DETR has -.5, so that a cell's position is its centre's.
    Returns:
        [B, H*W, D] float32.
    """
    valid = ~padding
    y = valid.cumsum(1, dtype=torch.float32)
    x = valid.cumsum(2, dtype=torch.float32)
    y = (y + shift) / (y[:, -1:, :] + 1e-6) * _TWO_PI
    x = (x + shift) / (x[:, :, -1:] + 1e-6) * _TWO_PI
    return torch.cat([_waves(y, dim // 2, temperature), _waves(x, dim // 2, temperature)], dim=-1).flatten(1, 2)


def full_image_positions(
    shape: tuple[int, int], dim: int, *, device: torch.device, temperature: float = 10000.0, shift: float = 0.0
) -> Tensor:
    """`image_positions` of an image without padding: [1, H*W, D] float32, without the mask's operations."""
    height, width = shape
    y = (torch.arange(1, height + 1, device=device, dtype=torch.float32) + shift) / (height + 1e-6) * _TWO_PI
    x = (torch.arange(1, width + 1, device=device, dtype=torch.float32) + shift) / (width + 1e-6) * _TWO_PI
    rows = _waves(y, dim // 2, temperature)[:, None].expand(height, width, -1)
    columns = _waves(x, dim // 2, temperature)[None, :].expand(height, width, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)[None]


def point_positions(points: Tensor, dim: int, *, temperature: float = 10000.0) -> Tensor:
    """Positions of points, comparable with those of feature cells (Conditional DETR §3.3).

    Args:
        points: [..., 2] (x, y) fractions.
        dim: D, divisible by 4. Ours: any such width; the official code assumes 256.
    Returns:
        [..., D] float32.
    """
    angles = points.float() * _TWO_PI
    x, y = angles.unbind(-1)
    return torch.cat([_waves(y, dim // 2, temperature), _waves(x, dim // 2, temperature)], dim=-1)


def box_positions(boxes: Tensor, dim: int, *, temperature: float = 10000.0) -> Tensor:
    """Positions of boxes (DAB-DETR, arXiv:2201.12329, §4.2).

    The first half is `point_positions` of the centres.

    Args:
        boxes: [..., 4] (cx, cy, w, h) fractions.
        dim: D, divisible by 4.
    Returns:
        [..., 2 D] float32: waves of cy, cx, w, h.
    """
    sizes = (boxes[..., 2:].float() * _TWO_PI).unbind(-1)
    waves = [_waves(size, dim // 2, temperature) for size in sizes]
    return torch.cat([point_positions(boxes[..., :2], dim, temperature=temperature), *waves], dim=-1)


def _waves(angles: Tensor, num: int, temperature: float) -> Tensor:
    """[...] -> [..., num]: sine and cosine in turn, at num/2 wavelengths from 1 to almost `temperature`."""
    exponents = torch.arange(num // 2, device=angles.device, dtype=torch.float32) * (2 / num)
    phases = angles[..., None] / temperature**exponents  # [..., num/2]
    return torch.stack([phases.sin(), phases.cos()], dim=-1).flatten(-2)
