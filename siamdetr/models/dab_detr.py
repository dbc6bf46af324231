"""DAB-DETR (Liu et al. 2022, arXiv:2201.12329): queries are boxes, refined from layer to layer.

The decoder layer is Conditional DETR's. New are the origin of its positions and the cross-attention: the query position
is read off the sine waves of the current box (cx, cy, w, h), and the spatial part of cross-attention is scaled by the
ratio of a predicted to the current width and height, so that the attention is as wide and as high as the object (§4.4).
The encoder rescales the cells' positions by what they hold.

As the official code, unlike the paper's figure: the next reference comes from the decoder's output *before* the final
norm, the prediction of the same layer from the normalised one. Inside the decoder references are detached; those that
predictions start from are not, so that each prediction also trains the step that made its reference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from siamdetr.models.attention import mask_bias, padding_bias
from siamdetr.models.backbone.pyramid import LastMapProjection
from siamdetr.models.conditional_detr import ConditionalDecoderLayer
from siamdetr.models.encoder import EncoderLayer, flatten_levels
from siamdetr.models.heads import MLP, Heads, place_boxes, shared_heads
from siamdetr.models.parts import VariantParts, initialize_transformer
from siamdetr.models.position import box_positions
from siamdetr.models.queries import QuerySource
from siamdetr.settings.detector import DetectorSettings
from siamdetr.structures.model import Decoded, Memory, Queries

# How far references stay from 0 and 1; the other official detectors use 1e-5.
REFERENCE_EPS = 1e-3


class AnchorQueries(QuerySource):
    """`num_queries` learned boxes, the same for every image, with content zero.

    With `num_patterns` > 0 every box becomes one query per pattern, a learned content (Anchor DETR, arXiv:2109.07107):
    the queries are all boxes with the first pattern, then all with the second, and so on.
    """

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__(region_width=settings.dim)
        self.dim = settings.dim
        self.anchors = nn.Embedding(settings.num_queries, 4)  # before the sigmoid
        self.patterns = nn.Embedding(settings.num_patterns, settings.dim) if settings.num_patterns else None

    def forward(self, batch_size: int) -> Queries:
        """Queries for `batch_size` images: anchors [B, Q, 4], content, no position."""
        anchors = self.anchors.weight.sigmoid()
        content, anchors = repeat_for_patterns(anchors.new_zeros(1, self.dim), anchors, self.patterns)
        return Queries(
            content=content.expand(batch_size, -1, -1), position=None, anchors=anchors.expand(batch_size, -1, -1)
        )


def repeat_for_patterns(content: Tensor, anchors: Tensor, patterns: nn.Embedding | None) -> tuple[Tensor, Tensor]:
    """Repeat every box once per pattern, which is added to its content.

    Args:
        content: [Q, D], or [1, D] common to all boxes.
        anchors: [Q, 4].
        patterns: P contents; None: every box becomes one query.
    Returns:
        [P Q, D] and [P Q, 4]: all boxes with the first pattern, then all with the second, and so on.
    """
    if patterns is None:
        return content.expand(len(anchors), -1), anchors
    each = content + patterns.weight[:, None]  # [P, 1 | Q, D]
    return each.expand(-1, len(anchors), -1).flatten(0, 1), anchors.repeat(patterns.num_embeddings, 1)


def require_boxes(queries: Queries) -> Tensor:
    """The anchors [B, Q, 4] of queries.

    Raises:
        ValueError: they have none, or points.
    """
    if queries.anchors is None or queries.anchors.shape[-1] != 4:
        got = None if queries.anchors is None else list(queries.anchors.shape)
        raise ValueError(f"DAB decoder: expected queries with anchors [B, Q, 4], got {got}; take detector.queries()")
    return queries.anchors


class RescalingEncoder(nn.Module):
    """The encoder of DETR, whose positions a small network rescales before each layer."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(settings) for _ in range(settings.encoder_layers))
        self.position_scale = MLP(settings.dim, settings.dim, settings.dim, num_layers=2)
        self.temperature = settings.own_position_temperature

    def forward(self, levels: tuple[Tensor, ...], padding: Tensor | None) -> Memory:
        """Encode one projected map [B, D, h, w]; `padding` [B, H, W] bool of the images, True = padded."""
        start = flatten_levels(levels, padding, temperature=self.temperature)
        tokens, bias = start.tokens, padding_bias(start.padding, start.tokens.dtype)
        for layer in self.layers:
            tokens = layer(tokens, start.position * self.position_scale(tokens), bias)
        return dataclasses.replace(start, tokens=tokens)


class AnchorDecoder(nn.Module):
    """`decoder_layers` layers, each around the boxes that the one before it refined."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        dim, num_layers = settings.dim, settings.decoder_layers
        self.dim = dim
        self.layers = nn.ModuleList(ConditionalDecoderLayer(settings, is_first=i == 0) for i in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.position_head = MLP(2 * dim, dim, dim, num_layers=2)
        self.spatial_scale = MLP(dim, dim, dim, num_layers=2)
        self.size_head = MLP(dim, dim, 2, num_layers=2)

    def forward(self, queries: Queries, memory: Memory, heads: Heads) -> Decoded:
        """Decode queries with anchors [B, Q, 4].

        Args:
            queries: content and anchors; whatever a pretext knows of a query is in its content.
            memory: the encoded image.
            heads: the detector's; the box head also moves the references.
        Returns:
            References [L, B, Q, 4]: the first are the anchors, the others are the boxes of the layer before.
        """
        self_bias = mask_bias(queries.attention_mask, memory.tokens.dtype)
        cross_bias = padding_bias(memory.padding, memory.tokens.dtype)
        content, current = queries.content, require_boxes(queries)
        hidden, references = [], [current]
        for index, layer in enumerate(self.layers):
            sine = box_positions(current, self.dim).to(content.dtype)  # [B, Q, 2 D]
            spatial = self._spatial(sine[..., : self.dim], content, current, is_first=index == 0)
            position = self.position_head(sine)
            content = layer(content, position, spatial, memory, self_bias=self_bias, cross_bias=cross_bias)
            hidden.append(self.norm(content))
            if index < len(self.layers) - 1:
                moved = place_boxes(heads.offsets(content, index), current, eps=REFERENCE_EPS)
                references.append(moved)
                current = moved.detach()
        stack, starts = torch.stack(hidden), torch.stack(references)
        return Decoded(stack, place_boxes(heads.box_head(stack), starts, eps=REFERENCE_EPS), references=starts)

    def _spatial(self, sine: Tensor, content: Tensor, boxes: Tensor, *, is_first: bool) -> Tensor:
        """[B, Q, D] sine of the centres, y half first -> the spatial query, modulated by size (eq. 6)."""
        if not is_first:
            sine = sine * self.spatial_scale(content)
        width, height = (self.size_head(content).sigmoid() / boxes[..., 2:].to(content.dtype)).unbind(-1)
        y, x = sine.chunk(2, dim=-1)
        return torch.cat([y * height[..., None], x * width[..., None]], dim=-1)


def build_dab(settings: DetectorSettings, channels: tuple[int, ...]) -> VariantParts:
    """The parts of DAB-DETR."""
    return assemble_dab(settings, channels, AnchorQueries)


def assemble_dab(
    settings: DetectorSettings, channels: tuple[int, ...], queries: Callable[[DetectorSettings], QuerySource]
) -> VariantParts:
    """The parts of DAB-DETR with queries of another kind, which have anchors."""
    parts = VariantParts(
        encoder=RescalingEncoder(settings),
        queries=queries(settings),
        decoder=AnchorDecoder(settings),
        input_projection=LastMapProjection(channels, settings.dim),
        heads=shared_heads(settings),
    )
    initialize_transformer(parts.encoder, parts.decoder)
    return parts
