"""The transformer encoder that all single-scale detectors share (DETR, arXiv:2005.12872, appendix A.3).

Post-norm: each part's output is added and the sum normalised. With `pre_norm` (official UP-DETR) a part looks at normalised
tokens, its output is added as it is, and one more norm ends the encoder.
"""

from __future__ import annotations

from torch import Tensor, nn

from siamdetr.models.attention import MultiHeadAttention, padding_bias
from siamdetr.models.heads import FeedForward
from siamdetr.settings.detector import DetectorSettings


class EncoderLayer(nn.Module):
    """Self-attention of feature cells, then a feed-forward part; positions enter queries and keys, not values."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(settings.dim, settings.heads, settings.dropout)
        self.attention_norm = nn.LayerNorm(settings.dim)
        self.feedforward = FeedForward(
            settings.dim,
            settings.feedforward,
            settings.dropout,
            activation=settings.own_activation,
            pre_norm=settings.pre_norm,
        )
        self.pre_norm = settings.pre_norm
        self.dropout = nn.Dropout(settings.dropout)

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

    def forward(self, tokens: Tensor, position: Tensor, padding: Tensor | None) -> Tensor:
        """[B, N, D], [B, N, D], [B, N] bool (True = padded) or None -> [B, N, D]."""
        bias = padding_bias(padding, tokens.dtype)
        for layer in self.layers:
            tokens = layer(tokens, position, bias)
        return tokens if self.norm is None else self.norm(tokens)
