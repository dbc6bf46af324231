"""The decoder of Deformable DETR (Zhu et al. 2020, arXiv:2010.04159), which samples a few points.

A reference point is read off the query's position. With `refine` each layer has heads of its own and starts from the
boxes of the layer before it (§4.2, "iterative bounding box refinement"). With `two_stage` the encoder itself proposes a
box at each cell, and the best of them are the first references and, as sine positions, the queries (§4.2, "two-stage").

Ours: queries are of their own image throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from siamdetr.models.attention import MultiHeadAttention, mask_bias
from siamdetr.models.backbone.pyramid import LevelProjections
from siamdetr.models.deformable.attention import DeformableAttention, Levels, describe_levels, place_on_levels
from siamdetr.models.deformable.encoder import DeformableEncoder
from siamdetr.models.deformable.sampling import at_least_float32
from siamdetr.models.dropout import Dropout
from siamdetr.models.heads import FeedForward, Heads, layer_heads, place_boxes, shared_heads
from siamdetr.models.parts import VariantParts, initialize_transformer
from siamdetr.models.position import box_positions
from siamdetr.models.queries import QuerySource
from siamdetr.models.query_selection import best_cells, fewer_queries, propose
from siamdetr.settings.detector import DetectorSettings
from siamdetr.structures.model import Decoded, Memory, Outputs, Queries

# Added at first to the logits of the width and height of a box whose reference has none: alone it is 12 % of the image.
FIRST_SIZE = -2.0


class ContentQueries(QuerySource):
    """Learned positions and contents, the same for every image."""

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__(region_width=dim)
        self.position = nn.Embedding(num_queries, dim)
        self.content = nn.Embedding(num_queries, dim)

    def forward(self, batch_size: int) -> Queries:
        """Queries for `batch_size` images: content and position [B, Q, D]."""
        return Queries(
            content=self.content.weight.expand(batch_size, -1, -1),
            position=self.position.weight.expand(batch_size, -1, -1),
        )


class ProposedQueries(QuerySource):
    """Zero queries, which a two-stage decoder fills from the encoder's proposals."""

    device_of: Tensor

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__(region_width=dim)
        self.num_queries, self.dim = num_queries, dim
        self.register_buffer("device_of", torch.zeros(()), persistent=False)

    def forward(self, batch_size: int) -> Queries:
        """Zero content and position [B, Q, D]."""
        zeros = self.device_of.expand(batch_size, self.num_queries, self.dim)
        return Queries(content=zeros, position=zeros)


class DeformableDecoderLayer(nn.Module):
    """Self-attention among queries, then deformable cross-attention; post-norm."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        dim, heads, dropout = settings.dim, settings.heads, settings.dropout
        self.self_attention = MultiHeadAttention(dim, heads, dropout)
        self.self_norm = nn.LayerNorm(dim)
        self.cross_attention = DeformableAttention(
            dim, heads, levels=settings.levels, points=settings.points_of_levels, observable=True
        )
        self.cross_norm = nn.LayerNorm(dim)
        self.feedforward = FeedForward(dim, settings.feedforward, dropout, activation=settings.own_activation)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        references: Tensor,
        memory: Memory,
        *,
        levels: Levels,
        self_bias: Tensor | None,
    ) -> Tensor:
        """One decoder layer: content and position [B, Q, D], references [B, Q, 2 | 4] -> content [B, Q, D].

        References are fractions of the unpadded image.
        """
        placed = content + position
        content = self.self_norm(content + self.dropout(self.self_attention(placed, placed, content, bias=self_bias)))
        seen = self.cross_attention(
            content + position, place_on_levels(references, levels), memory.tokens, memory.padding, levels=levels
        )
        content = self.cross_norm(content + self.dropout(seen))
        out: Tensor = self.feedforward(content)
        return out


class DeformableDecoder(nn.Module):
    """`decoder_layers` layers; unlike DETR's, their outputs have no further norm."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        self.refine = settings.refine
        self.layers = nn.ModuleList(DeformableDecoderLayer(settings) for _ in range(settings.decoder_layers))
        self.proposer = Proposer(settings) if settings.two_stage else None
        self.reference_head = None if settings.two_stage else nn.Linear(settings.dim, 2)
        if self.reference_head is not None:
            nn.init.zeros_(self.reference_head.bias)

    def forward(self, queries: Queries, memory: Memory, heads: Heads) -> Decoded:
        """Decode queries with content and position.

        Args:
            queries: of all images; a two-stage decoder adds what it predicts from the chosen proposals. Anchors [B, Q,
                2] replace the reference points that are predicted from the position.
            memory: the encoded images.
            heads: the detector's; with `refine` one of each a layer.
        Returns:
            References [L, B, Q, 2], with `two_stage` [L, B, Q, 4]; with `refine` each layer's are the boxes of the one
            before.
        Raises:
            ValueError: the queries have no position, or there are fewer cells than queries to choose.
        """
        if queries.position is None:
            raise ValueError("deformable decoder: expected queries with a position [B, Q, D], got None")
        content, position, proposals = queries.content, queries.position, None
        if self.proposer is not None:
            queries = fewer_queries(queries, memory)
            content, position, current, proposals = self.proposer(queries, memory, heads)
        else:
            current = self.start(queries)
        levels = describe_levels(memory.shapes, memory.padding, device=memory.tokens.device)
        self_bias = mask_bias(queries.attention_mask, memory.tokens.dtype)
        hidden, boxes, references = [], [], []
        for index, layer in enumerate(self.layers):
            references.append(current)
            content = layer(content, position, current, memory, levels=levels, self_bias=self_bias)
            hidden.append(content)
            if self.refine:
                boxes.append(place_boxes(heads.offsets(content, index), current))
                current = boxes[-1].detach()
        stack, starts = torch.stack(hidden), _stack_references(references)
        placed = torch.stack(boxes) if self.refine else place_boxes(heads.box_head(stack), starts)
        return Decoded(stack, placed, references=starts, proposals=proposals)

    def start(self, queries: Queries) -> Tensor:
        """[B, Q, 2] reference points of the first layer: the anchors, else predicted from the position."""
        if queries.anchors is not None:
            return queries.anchors
        assert self.reference_head is not None
        return at_least_float32(self.reference_head(queries.position)).sigmoid()


def _stack_references(references: list[Tensor]) -> Tensor:
    """[B, Q, 2 | 4] of each layer -> [L, B, Q, 4], or [L, B, Q, 2] where the first layer has points."""
    width = references[0].shape[-1]
    return torch.stack([one[..., :width] for one in references])


class Proposer(nn.Module):
    """The first stage: a class score and a box at every cell, the best of which become queries."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        dim = settings.dim
        self.dim = dim
        self.project = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(2 * dim, 2 * dim)
        self.query_norm = nn.LayerNorm(2 * dim)

    def forward(self, queries: Queries, memory: Memory, heads: Heads) -> tuple[Tensor, Tensor, Tensor, Outputs]:
        """Content [B, Q, D], position [B, Q, D], references [B, Q, 4], and all proposals.

        As in the official code: the score is that of class 0; padded cells and boxes near the border are kept with an
        empty feature and the box 1, 1, 1, 1; a query gets only the box of its proposal.
        """
        proposed = propose(memory, heads, lambda tokens: self.norm(self.project(tokens)))
        best = best_cells(proposed.logits[..., 0], queries.content.shape[1])
        references = proposed.take(best).boxes.detach()
        # The official order is x, y, w, h; `box_positions` puts y first. A list as index would be copied from the host.
        sine = box_positions(
            torch.cat([references[..., 1:2], references[..., :1], references[..., 2:]], dim=-1), self.dim
        ).to(memory.tokens.dtype)
        position, content = self.query_norm(self.query(sine)).chunk(2, dim=-1)
        assert queries.position is not None
        return queries.content + content, queries.position + position, references, proposed.outputs()


def build_deformable(settings: DetectorSettings, channels: tuple[int, ...]) -> VariantParts:
    """The parts of Deformable DETR."""
    queries = ProposedQueries if settings.two_stage else ContentQueries
    first_size = 0.0 if settings.two_stage else FIRST_SIZE
    parts = VariantParts(
        encoder=DeformableEncoder(settings),
        queries=queries(settings.num_queries, settings.dim),
        decoder=DeformableDecoder(settings),
        input_projection=LevelProjections(channels, settings.dim, settings.levels),
        heads=layer_heads(settings, first_size=first_size, proposals=settings.two_stage)
        if settings.refine
        else shared_heads(settings, first_size=first_size),
    )
    initialize_transformer(parts.encoder, parts.decoder)
    return parts
