"""RT-DETR (Zhao et al. 2023, arXiv:2304.08069) and RT-DETRv2 (Lv et al. 2024, arXiv:2407.17140).

A hybrid encoder (`siamdetr.models.hybrid.encoder`) mixes three levels cheaply. Queries are chosen by score, whose
training target is the overlap of the box (the criterion's `iou_aware`), so that well placed boxes are chosen
("uncertainty-minimal selection", §4.3). The decoder layers are Deformable DETR's; a query's position is read off its
plain box anew in every layer. Version 2 may look at another number of points in each level (`level_points`); with equal
numbers it computes what version 1 does.

As the official code: contents are the chosen features, detached, or learned; each layer has heads of its own, without a
norm before them; a layer's boxes also train the layer before it, through the reference that it made (look forward
twice). Ours: padding, which the official code does not know, is kept out of attention and of the boxes' unit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from siamdetr.models.attention import mask_bias
from siamdetr.models.contrastive_denoising import contrastive_queries
from siamdetr.models.deformable.attention import describe_levels
from siamdetr.models.deformable_detr import DeformableDecoderLayer
from siamdetr.models.denoising import Draws, EmptySlots
from siamdetr.models.heads import MLP, Heads, layer_heads, place_boxes
from siamdetr.models.hybrid.encoder import ConvProjections, HybridEncoder
from siamdetr.models.parts import VariantParts, initialize_transformer
from siamdetr.models.queries import QuerySource
from siamdetr.models.query_selection import MixedSelection, fewer_queries, join_anchors
from siamdetr.settings.detector import DenoisingSettings, DetectorSettings
from siamdetr.structures.model import Decoded, Memory, Queries
from siamdetr.structures.targets import Targets

_SLOTS = EmptySlots(value=0.0, eps=1e-5)  # the official code clamps a box of zeros


class ChosenFeatureQueries(QuerySource):
    """Queries whose contents are learned, or the features of the cells that the encoder chooses.

    In training, denoising queries precede them.

    The content here is what a pretext may add to: zeros, to which the decoder adds the chosen features, or the learned
    contents.
    """

    device_of: Tensor

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__(region_width=settings.dim)
        self.num_queries, self.dim = settings.num_queries, settings.dim
        self.content = nn.Embedding(settings.num_queries, settings.dim) if settings.learned_content else None
        self.labels = nn.Embedding(settings.num_classes, settings.dim)
        self.register_buffer("device_of", torch.zeros(()), persistent=False)

    def forward(self, batch_size: int) -> Queries:
        """The matching queries alone, for `batch_size` images: content [B, Q, D], no position, no anchors."""
        content = self.device_of.expand(self.num_queries, self.dim) if self.content is None else self.content.weight
        if self.training:  # several processes wait for every gradient, also where nothing was noised
            content = content + 0 * self.labels.weight.sum()
        return Queries(content=content.expand(batch_size, -1, -1), position=None)

    def keep_labels(self, first: int, last: int) -> None:
        """See `QuerySource`."""
        kept = self.labels.weight[first:last].detach().clone()
        self.labels = nn.Embedding(last - first, kept.shape[1], _weight=kept)

    def for_training(self, targets: Targets, settings: DenoisingSettings, draws: Draws | None = None) -> Queries:
        """Denoising and matching queries for the images of `targets`.

        Where no image has a box, only the matching queries.

        The draws are for 2 x groups x M boxes; the number of groups is `group_count`'s. Ours: the official code makes
        up a box where no image has one.
        """
        queries: Queries = self(len(targets.counts))
        return contrastive_queries(queries, targets, settings, draws, labels=self.labels, slots=_SLOTS)


class RtDetrDecoder(nn.Module):
    """`decoder_layers` layers of Deformable DETR, each around the boxes that the one before it refined."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        dim = settings.dim
        self.learned_content = settings.learned_content
        self.layers = nn.ModuleList(DeformableDecoderLayer(settings) for _ in range(settings.decoder_layers))
        self.position_head = MLP(4, 2 * dim, dim, num_layers=2)
        self.proposer = MixedSelection(settings)

    def forward(self, queries: Queries, memory: Memory, heads: Heads) -> Decoded:
        """Decode queries with content.

        Args:
            queries: of all images; only denoising queries bring anchors. What a pretext knows of a query is in its
                content.
            memory: the encoded images.
            heads: the detector's, one of each a layer, the last for the proposals.
        Returns:
            References [L, B, Q, 4]: the first are the anchors and the chosen boxes, detached, the others are the boxes
            of the layer before. The proposals are the chosen ones.
        Raises:
            ValueError: a pretext's groups of queries do not fit into the cells (`fewer_queries`).
        """
        queries = fewer_queries(queries, memory)
        chosen = self.proposer(memory, heads, queries.content.shape[1] - queries.num_denoising)
        content, current = queries.content, join_anchors(queries.anchors, chosen.boxes.detach())
        if not self.learned_content:
            features = chosen.features.detach().to(content.dtype)
            content = content + nn.functional.pad(features, (0, 0, queries.num_denoising, 0))
        levels = describe_levels(memory.shapes, memory.padding, device=memory.tokens.device)
        self_bias = mask_bias(queries.attention_mask, memory.tokens.dtype)
        hidden, boxes, references = [], [], [current]
        for index, layer in enumerate(self.layers):
            position = self.position_head(current.to(content.dtype))
            content = layer(content, position, current, memory, levels=levels, self_bias=self_bias)
            hidden.append(content)
            offsets = heads.offsets(content, index)
            boxes.append(place_boxes(offsets, references[-1]))  # not detached: look forward twice
            references.append(place_boxes(offsets, current))
            current = references[-1].detach()
        return Decoded(torch.stack(hidden), torch.stack(boxes), torch.stack(references[:-1]), chosen.outputs())


def build_rtdetr(settings: DetectorSettings, channels: tuple[int, ...]) -> VariantParts:
    """The parts of RT-DETR; convolutions keep PyTorch's own initialisation, as in the official code."""
    encoder = HybridEncoder(settings, len(channels))
    parts = VariantParts(
        input_projection=ConvProjections(channels, settings.own_encoder_dim, len(channels)),
        encoder=encoder,
        queries=ChosenFeatureQueries(settings),
        decoder=RtDetrDecoder(settings),
        heads=layer_heads(settings, proposals=True),
    )
    initialize_transformer(parts.decoder, encoder.layers)
    return parts
