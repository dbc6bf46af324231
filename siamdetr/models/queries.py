"""Object queries as DETR learns them: a position per query, and content that starts at zero."""

from __future__ import annotations

import torch
from torch import nn

from siamdetr.structures.model import Queries


class LearnedQueries(nn.Module):
    """`num_queries` learned positions, the same for every image."""

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__()
        self.position = nn.Embedding(num_queries, dim)

    def forward(self, batch_size: int) -> Queries:
        """Queries for `batch_size` images: position [B, Q, D] (a view of the learned one), content zero."""
        position = self.position.weight.expand(batch_size, -1, -1)
        return Queries(content=torch.zeros_like(position), position=position)
