"""The encoder of Deformable DETR (Zhu et al. 2020, arXiv:2010.04159, §4.2).

Each cell attends to points near itself in all levels.

The position of a cell is the sine position of its centre plus a learned embedding of its level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from siamdetr.models.deformable.attention import DeformableAttention, Levels, describe_levels, place_on_levels
from siamdetr.models.dropout import Dropout
from siamdetr.models.encoder import flatten_levels
from siamdetr.models.heads import FeedForward
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
        self.dropout = Dropout(dropout)

    def forward(
        self, tokens: Tensor, position: Tensor, references: Tensor, padding: Tensor | None, *, levels: Levels
    ) -> Tensor:
        """[B, N, D] tokens and positions, [B, N, L, 2] references -> [B, N, D]."""
        seen = self.attention(tokens + position, references, tokens, padding, levels=levels)
        out: Tensor = self.feedforward(self.attention_norm(tokens + self.dropout(seen)))
        return out


class DeformableEncoder(nn.Module):
    """`encoder_layers` layers over `levels` levels; with no layer the projected features are the memory.

    Args:
        settings: of the detector.
        shift: of the cell numbers in sine positions (`image_positions`); None: as `cell_shift` says.
    """

    def __init__(self, settings: DetectorSettings, *, shift: float | None = None) -> None:
        super().__init__()
        own = -0.5 if settings.cell_shift else 0.0
        self.shift = own if shift is None else shift
        self.temperature = settings.own_position_temperature
        self.layers = nn.ModuleList(DeformableEncoderLayer(settings) for _ in range(settings.encoder_layers))
        self.level_embedding = nn.Parameter(torch.empty(settings.levels, settings.dim))
        self.initialize()

    def initialize(self) -> None:
        """Initialise the level embedding only."""
        nn.init.normal_(self.level_embedding)

    def forward(self, levels: tuple[Tensor, ...], padding: Tensor | None) -> Memory:
        """Encode projected maps.

        Args:
            levels: [B, D, h, w] of each level, finest first.
            padding: [B, H, W] bool of the images, True = padded; None = nothing is.
        """
        start = flatten_levels(levels, padding, temperature=self.temperature, shift=self.shift)
        tokens, position = start.tokens, start.position + self._level_positions(start)
        described = describe_levels(start.shapes, start.padding, device=tokens.device)
        references = place_on_levels(cell_centres(described, tokens.shape[0]), described)
        for layer in self.layers:
            tokens = layer(tokens, position, references, start.padding, levels=described)
        return Memory(tokens=tokens, position=position, padding=start.padding, shapes=start.shapes)

    def _level_positions(self, memory: Memory) -> Tensor:
        """[N, D]: the level embedding of each cell."""
        embeddings = self.level_embedding.to(memory.position.dtype)
        return torch.cat(
            [one.expand(height * width, -1) for one, (height, width) in zip(embeddings, memory.shapes, strict=True)]
        )


def cell_centres(levels: Levels, batch_size: int) -> Tensor:
    """Centres of all cells: [B, N, 2] (x, y) float32, fractions of the unpadded image, above 1 in padding."""
    parts = []
    for index, (height, width) in enumerate(levels.shapes):
        device = levels.sizes.device
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        grid = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1).flatten(0, 1)  # [h w, 2]
        whole = grid.expand(batch_size, -1, -1)
        parts.append(whole if levels.valid is None else whole / levels.valid[:, None, index])
    return torch.cat(parts, dim=1)
