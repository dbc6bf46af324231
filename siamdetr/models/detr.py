"""The decoder of DETR (Carion et al. 2020, arXiv:2005.12872).

Query positions are learned, contents start at zero, and boxes have no reference point.

Post-norm as the encoder; with `pre_norm` each part takes normalised queries, and its output is added unnormalised.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from siamdetr.models.attention import MultiHeadAttention, mask_bias, padding_bias
from siamdetr.models.backbone.pyramid import LastMapProjection
from siamdetr.models.dropout import Dropout
from siamdetr.models.encoder import Encoder
from siamdetr.models.heads import FeedForward, Heads, place_boxes, shared_heads
from siamdetr.models.parts import VariantParts, initialize_transformer
from siamdetr.models.queries import LearnedQueries
from siamdetr.settings.detector import DetectorSettings
from siamdetr.structures.model import Decoded, Memory, Queries


class VanillaDecoderLayer(nn.Module):
    """Self-attention, then cross-attention; positions are added to queries and keys of both."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        dim, heads, dropout = settings.dim, settings.heads, settings.dropout
        self.self_attention = MultiHeadAttention(dim, heads, dropout)
        self.self_norm = nn.LayerNorm(dim)
        self.cross_attention = MultiHeadAttention(dim, heads, dropout, observable=True)
        self.cross_norm = nn.LayerNorm(dim)
        self.feedforward = FeedForward(
            dim, settings.feedforward, dropout, activation=settings.own_activation, pre_norm=settings.pre_norm
        )
        self.pre_norm = settings.pre_norm
        self.dropout = Dropout(dropout)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        memory: Memory,
        *,
        memory_keys: Tensor,
        self_bias: Tensor | None,
        cross_bias: Tensor | None,
    ) -> Tensor:
        """[B, Q, D] content and position -> [B, Q, D] content.

        `memory_keys` [B, N, D] are the tokens with their positions added; biases are added to attention scores.
        """
        own = self.self_norm(content) if self.pre_norm else content
        placed = own + position
        content = content + self.dropout(self.self_attention(placed, placed, own, bias=self_bias))
        if self.pre_norm:
            own = self.cross_norm(content)
        else:
            own = content = self.self_norm(content)
        seen = self.cross_attention(own + position, memory_keys, memory.tokens, bias=cross_bias, grid=memory.shapes[0])
        content = content + self.dropout(seen)
        out: Tensor = self.feedforward(content if self.pre_norm else self.cross_norm(content))
        return out


class VanillaDecoder(nn.Module):
    """`decoder_layers` layers; one norm serves the output of every layer."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VanillaDecoderLayer(settings) for _ in range(settings.decoder_layers))
        self.norm = nn.LayerNorm(settings.dim)

    def forward(self, queries: Queries, memory: Memory, heads: Heads) -> Decoded:
        """Decode queries with a position; there are no references."""
        if queries.position is None:
            raise ValueError("vanilla decoder: expected queries with a position [B, Q, D], got None")
        self_bias = mask_bias(queries.attention_mask, memory.tokens.dtype)
        cross_bias = padding_bias(memory.padding, memory.tokens.dtype)
        memory_keys = memory.tokens + memory.position
        content, hidden = queries.content, []
        for layer in self.layers:
            content = layer(
                content, queries.position, memory, memory_keys=memory_keys, self_bias=self_bias, cross_bias=cross_bias
            )
            hidden.append(self.norm(content))
        stack = torch.stack(hidden)
        return Decoded(stack, place_boxes(heads.box_head(stack), None), references=None)


def build_vanilla(settings: DetectorSettings, channels: tuple[int, ...]) -> VariantParts:
    """The parts of DETR."""
    parts = VariantParts(
        encoder=Encoder(settings),
        queries=LearnedQueries(settings.num_queries, settings.dim),
        decoder=VanillaDecoder(settings),
        input_projection=LastMapProjection(channels, settings.dim),
        heads=shared_heads(settings, starts_at_reference=False),
    )
    initialize_transformer(parts.encoder, parts.decoder)
    return parts
