"""The transformer encoder of all single-scale detectors (DETR, arXiv:2005.12872, appendix A.3).

Post-norm: each part's output is added and the sum normalised. With `pre_norm` (official UP-DETR) a part takes
normalised tokens, its output is added as it is, and one more norm ends the encoder.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siamdetr.models.attention import MultiHeadAttention, padding_bias
from siamdetr.models.dropout import Dropout
from siamdetr.models.heads import FeedForward, FeedForwardActivation
from siamdetr.models.position import full_image_positions, image_positions
from siamdetr.settings.detector import DetectorSettings
from siamdetr.structures.model import Memory


def resize_padding(padding: Tensor, shape: tuple[int, int]) -> Tensor:
    """[B, H, W] bool of the images, True = padded -> [B, h, w] of a feature map."""
    return F.interpolate(padding[:, None].float(), size=shape)[:, 0] > 0.5


def flatten_levels(
    levels: tuple[Tensor, ...], padding: Tensor | None, *, temperature: float, shift: float = 0.0
) -> Memory:
    """Flatten feature maps into one sequence of cells with their sine positions, the input of an encoder.

    Args:
        levels: [B, D, h, w] of each level, finest first.
        padding: [B, H, W] bool of the images, True = padded; None = nothing is.
        temperature: of the sine positions.
        shift: of the cell numbers, see `image_positions`.
    """
    shapes = tuple((level.shape[2], level.shape[3]) for level in levels)
    tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)  # [B, N, D]
    batch_size, dim = tokens.shape[0], tokens.shape[2]
    if padding is None:
        positions = [
            full_image_positions(shape, dim, device=tokens.device, temperature=temperature, shift=shift)
            for shape in shapes
        ]
        position = torch.cat(positions, dim=1).to(tokens.dtype).expand(batch_size, -1, -1)
        return Memory(tokens=tokens, position=position, padding=None, shapes=shapes)
    grids = [resize_padding(padding, shape) for shape in shapes]  # [B, h, w]
    positions = [image_positions(grid, dim, temperature=temperature, shift=shift) for grid in grids]
    position = torch.cat(positions, dim=1).to(tokens.dtype)
    cells = torch.cat([grid.flatten(1) for grid in grids], dim=1)  # [B, N]
    return Memory(tokens=tokens, position=position, padding=cells, shapes=shapes)


class EncoderLayer(nn.Module):
    """Self-attention of feature cells, then a feed-forward part.

    Positions enter queries and keys, not values.

    Args:
        settings: of the detector.
        activation: of the feed-forward part; None: the settings' own.
    """

    def __init__(self, settings: DetectorSettings, *, activation: FeedForwardActivation | None = None) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(settings.dim, settings.heads, settings.dropout)
        self.attention_norm = nn.LayerNorm(settings.dim)
        self.feedforward = FeedForward(
            settings.dim,
            settings.feedforward,
            settings.dropout,
            activation=activation or settings.own_activation,
            pre_norm=settings.pre_norm,
        )
        self.pre_norm = settings.pre_norm
        self.dropout = Dropout(settings.dropout)

    def forward(self, tokens: Tensor, position: Tensor, bias: Tensor | None) -> Tensor:
        """[B, N, D], [B, N, D], [B, 1, 1, N] -> [B, N, D]."""
        seen = self.attention_norm(tokens) if self.pre_norm else tokens
        placed = seen + position
        tokens = tokens + self.dropout(self.attention(placed, placed, seen, bias=bias))
        out: Tensor = self.feedforward(tokens if self.pre_norm else self.attention_norm(tokens))
        return out


class Encoder(nn.Module):
    """`encoder_layers` layers; with none the projected features are the memory."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(settings) for _ in range(settings.encoder_layers))
        self.norm = nn.LayerNorm(settings.dim) if settings.pre_norm else None
        self.temperature = settings.own_position_temperature

    def forward(self, levels: tuple[Tensor, ...], padding: Tensor | None) -> Memory:
        """Encode one projected map [B, D, h, w]; `padding` [B, H, W] bool of the images, True = padded."""
        start = flatten_levels(levels, padding, temperature=self.temperature)
        tokens, bias = start.tokens, padding_bias(start.padding, start.tokens.dtype)
        for layer in self.layers:
            tokens = layer(tokens, start.position, bias)
        return dataclasses.replace(start, tokens=tokens if self.norm is None else self.norm(tokens))
