"""The decoder of Conditional DETR (Meng et al. 2021, arXiv:2108.06152).

Its idea: the score of a query and a cell is the *sum* of a content score and a spatial score, since per head content
and position are concatenated, not added (§3.2). The spatial query is the sine position of a reference point, scaled
channel by channel by what the query has seen so far (§3.3). Boxes are offsets from the reference point, which a small
network reads off the query position.

Ours: any width divisible by 4 (the official code assumes 256), batch first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from siamdetr.models.attention import ScaledDotProduct, mask_bias, padding_bias, split_heads
from siamdetr.models.backbone.pyramid import LastMapProjection
from siamdetr.models.dropout import Dropout
from siamdetr.models.encoder import Encoder
from siamdetr.models.heads import MLP, FeedForward, Heads, place_boxes, shared_heads
from siamdetr.models.parts import VariantParts, initialize_transformer
from siamdetr.models.position import point_positions
from siamdetr.models.queries import LearnedQueries
from siamdetr.settings.detector import DetectorSettings
from siamdetr.structures.model import Decoded, Memory, Queries


class ConditionalSelfAttention(nn.Module):
    """Self-attention among queries; content and position have separate projections, which are added."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_content = nn.Linear(dim, dim)
        self.query_position = nn.Linear(dim, dim)
        self.key_content = nn.Linear(dim, dim)
        self.key_position = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.bias)
        self.attend = ScaledDotProduct(dropout)

    def forward(self, content: Tensor, position: Tensor, bias: Tensor | None) -> Tensor:
        """[B, Q, D], [B, Q, D] -> [B, Q, D]."""
        query = self.query_content(content) + self.query_position(position)
        key = self.key_content(content) + self.key_position(position)
        mixed = self.attend(
            split_heads(query, self.heads),
            split_heads(key, self.heads),
            split_heads(self.value(content), self.heads),
            bias=bias,
        )
        out: Tensor = self.out(mixed)
        return out


class ConditionalCrossAttention(nn.Module):
    """Cross-attention to the image.

    Per head 2 D / heads channels of query and key, D / heads of value (§3.2).

    Only the first layer adds the learned query position to the content, which is still zero there, and the position of
    the cells to theirs; the later layers have no projection for it.
    """

    def __init__(self, dim: int, heads: int, dropout: float, *, is_first: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query_content = nn.Linear(dim, dim)
        self.query_position = nn.Linear(dim, dim) if is_first else None
        self.query_sine = nn.Linear(dim, dim)
        self.key_content = nn.Linear(dim, dim)
        self.key_position = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.bias)
        self.attend = ScaledDotProduct(dropout, observable=True)

    def forward(
        self, content: Tensor, position: Tensor, spatial: Tensor, memory: Memory, bias: Tensor | None
    ) -> Tensor:
        """[B, Q, D] content, learned position and spatial query -> [B, Q, D]."""
        query, key = self.query_content(content), self.key_content(memory.tokens)
        key_position = self.key_position(memory.position)
        if self.query_position is not None:
            query = query + self.query_position(position)
            key = key + key_position
        mixed = self.attend(
            self._concatenate(query, self.query_sine(spatial)),
            self._concatenate(key, key_position),
            split_heads(self.value(memory.tokens), self.heads),
            bias=bias,
            grid=memory.shapes[0],
        )
        out: Tensor = self.out(mixed)
        return out

    def _concatenate(self, content: Tensor, position: Tensor) -> Tensor:
        """Concatenate two [B, T, D] in every head: [B, heads, T, 2 D / heads]."""
        return torch.cat([split_heads(content, self.heads), split_heads(position, self.heads)], dim=-1)


class ConditionalDecoderLayer(nn.Module):
    """Self-attention, conditional cross-attention, feed-forward; post-norm."""

    def __init__(self, settings: DetectorSettings, *, is_first: bool) -> None:
        super().__init__()
        dim, heads, dropout = settings.dim, settings.heads, settings.dropout
        self.self_attention = ConditionalSelfAttention(dim, heads, dropout)
        self.self_norm = nn.LayerNorm(dim)
        self.cross_attention = ConditionalCrossAttention(dim, heads, dropout, is_first=is_first)
        self.cross_norm = nn.LayerNorm(dim)
        self.feedforward = FeedForward(dim, settings.feedforward, dropout, activation=settings.own_activation)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        spatial: Tensor,
        memory: Memory,
        *,
        self_bias: Tensor | None,
        cross_bias: Tensor | None,
    ) -> Tensor:
        """[B, Q, D] content, learned position and spatial query -> [B, Q, D] content."""
        content = self.self_norm(content + self.dropout(self.self_attention(content, position, self_bias)))
        seen = self.cross_attention(content, position, spatial, memory, cross_bias)
        content = self.cross_norm(content + self.dropout(seen))
        out: Tensor = self.feedforward(content)
        return out


class ConditionalDecoder(nn.Module):
    """`decoder_layers` layers around one reference point per query; one norm serves every layer's output."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        dim, num_layers = settings.dim, settings.decoder_layers
        self.dim = dim
        self.layers = nn.ModuleList(ConditionalDecoderLayer(settings, is_first=i == 0) for i in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.reference_head = MLP(dim, dim, 2, num_layers=2)
        self.spatial_scale = MLP(dim, dim, dim, num_layers=2)

    def forward(self, queries: Queries, memory: Memory, heads: Heads) -> Decoded:
        """Decode queries with a position; references [L, B, Q, 2] are the same points in every layer.

        The points follow from the query position, including what a pretext added to it.
        """
        if queries.position is None:
            raise ValueError("conditional decoder: expected queries with a position [B, Q, D], got None")
        points = self.reference_head(queries.position).float().sigmoid()  # [B, Q, 2] (x, y)
        sine = point_positions(points, self.dim).to(queries.content.dtype)  # [B, Q, D]
        self_bias = mask_bias(queries.attention_mask, memory.tokens.dtype)
        cross_bias = padding_bias(memory.padding, memory.tokens.dtype)
        content, hidden = queries.content, []
        for index, layer in enumerate(self.layers):
            spatial = sine if index == 0 else sine * self.spatial_scale(content)
            content = layer(content, queries.position, spatial, memory, self_bias=self_bias, cross_bias=cross_bias)
            hidden.append(self.norm(content))
        stack, references = torch.stack(hidden), points.expand(len(self.layers), -1, -1, -1)
        return Decoded(stack, place_boxes(heads.box_head(stack), references), references=references)


def build_conditional(settings: DetectorSettings, channels: tuple[int, ...]) -> VariantParts:
    """The parts of Conditional DETR."""
    parts = VariantParts(
        encoder=Encoder(settings),
        queries=LearnedQueries(settings.num_queries, settings.dim),
        decoder=ConditionalDecoder(settings),
        input_projection=LastMapProjection(channels, settings.dim),
        heads=shared_heads(settings),
    )
    initialize_transformer(parts.encoder, parts.decoder)
    return parts
