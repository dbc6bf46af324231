"""DAB-Deformable-DETR: queries are boxes, and sampling points lie relative to them.

Liu et al. 2022, arXiv:2201.12329, on Zhu et al. 2020, arXiv:2010.04159.

The decoder layer is Deformable DETR's. New are the queries, each a learned box with a learned content, and their
position: read off the sine waves of the current box (cx, cy, w, h) and scaled, after the first layer, by what the query
has seen. A box scales the sampling offsets, so attention needs no modulation by size as in DAB-DETR. Every layer has
heads of its own and refines the boxes of the layer before it.

As the official code: the waves are of the box as a fraction of the *padded* finest level, so that an image's answers
depend a little on the size it is padded to. Ours: boxes may differ from image to image (the official decoder takes one
set for the whole batch).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from siamdetr.models.attention import mask_bias
from siamdetr.models.backbone.pyramid import LevelProjections
from siamdetr.models.dab_detr import REFERENCE_EPS, repeat_for_patterns, require_boxes
from siamdetr.models.deformable.attention import Levels, describe_levels, place_on_levels
from siamdetr.models.deformable.encoder import DeformableEncoder
from siamdetr.models.deformable_detr import FIRST_SIZE, DeformableDecoderLayer
from siamdetr.models.heads import MLP, Heads, layer_heads, place_boxes
from siamdetr.models.parts import VariantParts, initialize_transformer
from siamdetr.models.position import box_positions
from siamdetr.models.queries import QuerySource
from siamdetr.settings.detector import DetectorSettings
from siamdetr.structures.model import Decoded, Memory, Queries


class ContentAnchorQueries(QuerySource):
    """Learned boxes, each with a learned content, the same for every image.

    With `num_patterns` each once per pattern.
    """

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__(region_width=settings.dim)
        self.anchors = nn.Embedding(settings.num_queries, 4)  # before the sigmoid
        self.content = nn.Embedding(settings.num_queries, settings.dim)
        self.patterns = nn.Embedding(settings.num_patterns, settings.dim) if settings.num_patterns else None

    def forward(self, batch_size: int) -> Queries:
        """Queries for `batch_size` images: anchors [B, Q, 4], content [B, Q, D], no position."""
        content, anchors = repeat_for_patterns(self.content.weight, self.anchors.weight.sigmoid(), self.patterns)
        return Queries(
            content=content.expand(batch_size, -1, -1), position=None, anchors=anchors.expand(batch_size, -1, -1)
        )


class DeformableAnchorDecoder(nn.Module):
    """`decoder_layers` layers of Deformable DETR, each around the boxes that the one before it refined."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        dim = settings.dim
        self.dim = dim
        self.layers = nn.ModuleList(DeformableDecoderLayer(settings) for _ in range(settings.decoder_layers))
        self.position_head = MLP(2 * dim, dim, dim, num_layers=2)
        self.position_scale = MLP(dim, dim, dim, num_layers=2)

    def forward(self, queries: Queries, memory: Memory, heads: Heads) -> Decoded:
        """Decode queries with anchors [B, Q, 4].

        Args:
            queries: content and anchors; whatever a pretext knows of a query is in its content.
            memory: the encoded images.
            heads: the detector's, one of each a layer; a layer's boxes are, detached, the next layer's references.
        Returns:
            References [L, B, Q, 4]. The anchors learn through the first layer.
        Raises:
            ValueError: the queries have no boxes.
        """
        current = require_boxes(queries)
        content, hidden, boxes, references = queries.content, [], [], []
        levels = describe_levels(memory.shapes, memory.padding, device=memory.tokens.device)
        self_bias = mask_bias(queries.attention_mask, memory.tokens.dtype)
        for index, layer in enumerate(self.layers):
            references.append(current)
            position = self._position(content, current, levels, is_first=index == 0)
            content = layer(content, position, current, memory, levels=levels, self_bias=self_bias)
            hidden.append(content)
            boxes.append(place_boxes(heads.offsets(content, index), current, eps=REFERENCE_EPS))
            current = boxes[-1].detach()
        return Decoded(torch.stack(hidden), torch.stack(boxes), references=torch.stack(references))

    def _position(self, content: Tensor, boxes: Tensor, levels: Levels, *, is_first: bool) -> Tensor:
        """[B, Q, D] content, [B, Q, 4] fractions of the unpadded image -> [B, Q, D]."""
        on_finest = place_on_levels(boxes, levels)[:, :, 0]
        position: Tensor = self.position_head(box_positions(on_finest, self.dim).to(content.dtype))
        return position if is_first else position * self.position_scale(content)


def build_dab_deformable(settings: DetectorSettings, channels: tuple[int, ...]) -> VariantParts:
    """The parts of DAB-Deformable-DETR."""
    return assemble_dab_deformable(settings, channels, ContentAnchorQueries)


def assemble_dab_deformable(
    settings: DetectorSettings, channels: tuple[int, ...], queries: Callable[[DetectorSettings], QuerySource]
) -> VariantParts:
    """The parts of DAB-Deformable-DETR with queries of another kind, which have anchors."""
    parts = VariantParts(
        encoder=DeformableEncoder(settings),
        queries=queries(settings),
        decoder=DeformableAnchorDecoder(settings),
        input_projection=LevelProjections(channels, settings.dim, settings.levels),
        heads=layer_heads(settings, first_size=FIRST_SIZE),
    )
    initialize_transformer(parts.encoder, parts.decoder)
    return parts
