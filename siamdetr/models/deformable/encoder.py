"""The encoder of Deformable DETR (Zhu et al. 2020, arXiv:2010.04159, §4.2): cells of all levels look at points near themselves
in all levels.

Which of its level a cell is, a learned embedding says; where it is, the sine position of its centre.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siamdetr.models.deformable.attention import DeformableAttention, Levels, describe_levels, place_on_levels
from siamdetr.models.deformable.sampling import Shapes
from siamdetr.models.heads import FeedForward
from siamdetr.models.position import full_image_positions, image_positions
from siamdetr.settings.detector import DetectorSettings
from siamdetr.structures.model import Memory


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention of cells, then a feed-forward part; positions enter queries, not values."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        dim, dropout = settings.dim, settings.dropout
        self.attention = DeformableAttention(
            dim, settings.heads, levels=settings.levels, points=settings.encoder_points
        )
        self.attention_norm = nn.LayerNorm(dim)
        self.feedforward = FeedForward(dim, settings.feedforward, dropout, activation=settings.own_activation)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Tensor, position: Tensor, references: Tensor, padding: Tensor | None, *, levels: Levels
    ) -> Tensor:
        """[B, N, D] tokens and positions, [B, N, L, 2] references -> [B, N, D]."""
        seen = self.attention(tokens + position, references, tokens, padding, levels=levels)
        out: Tensor = self.feedforward(self.attention_norm(tokens + self.dropout(seen)))
        return out


class DeformableEncoder(nn.Module):
    """`encoder_layers` layers over `levels` levels; with no layer the projected features are the memory."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        self.dim, self.shift = settings.dim, -0.5 if settings.cell_shift else 0.0
        self.temperature = settings.own_position_temperature
        self.layers = nn.ModuleList(DeformableEncoderLayer(settings) for _ in range(settings.encoder_layers))
        self.level_embedding = nn.Parameter(torch.empty(settings.levels, settings.dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Of the level embedding alone."""
        nn.init.normal_(self.level_embedding)

    def forward(self, maps: tuple[Tensor, ...], padding: Tensor | None) -> Memory:
        """Encode projected maps.

        Args:
            maps: [B, D, h, w] of each level, finest first.
            padding: [B, H, W] bool of the images, True = padded; None = nothing is.
        """
        shapes: Shapes = tuple((level.shape[2], level.shape[3]) for level in maps)
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)  # [B, N, D]
        grids = None if padding is None else [_resize(padding, shape) for shape in shapes]
        cells = None if grids is None else torch.cat([grid.flatten(1) for grid in grids], dim=1)  # [B, N]
        position = self._positions(shapes, grids, tokens)
        levels = describe_levels(shapes, cells, device=tokens.device)
        references = place_on_levels(cell_centres(levels, tokens.shape[0]), levels)
        for layer in self.layers:
            tokens = layer(tokens, position, references, cells, levels=levels)
        return Memory(tokens=tokens, position=position, padding=cells, shapes=shapes)

    def _positions(self, shapes: Shapes, grids: list[Tensor] | None, tokens: Tensor) -> Tensor:
        """[B, N, D] in the type of `tokens`."""
        parts = []
        for index, (shape, embedding) in enumerate(zip(shapes, self.level_embedding, strict=True)):
            if grids is None:
                sine = full_image_positions(
                    shape, self.dim, device=tokens.device, temperature=self.temperature, shift=self.shift
                ).expand(tokens.shape[0], -1, -1)
            else:
                sine = image_positions(grids[index], self.dim, temperature=self.temperature, shift=self.shift)
            parts.append(sine.to(tokens.dtype) + embedding.to(tokens.dtype))
        return torch.cat(parts, dim=1)


def cell_centres(levels: Levels, batch_size: int) -> Tensor:
    """Centres of all cells as fractions of the unpadded image (above 1 in the padding): [B, N, 2] (x, y) float32."""
    parts = []
    for index, (height, width) in enumerate(levels.shapes):
        device = levels.sizes.device
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        grid = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1).flatten(0, 1)  # [h w, 2]
        whole = grid.expand(batch_size, -1, -1)
        parts.append(whole if levels.valid is None else whole / levels.valid[:, None, index])
    return torch.cat(parts, dim=1)


def _resize(padding: Tensor, shape: tuple[int, int]) -> Tensor:
    """[B, H, W] bool -> [B, h, w]."""
    return F.interpolate(padding[:, None].float(), size=shape)[:, 0] > 0.5
