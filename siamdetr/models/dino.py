"""DINO (Zhang et al. 2022, arXiv:2203.03605): queries start from the encoder's best boxes.

The rest of the decoder is that of DAB-Deformable-DETR.

Three ideas meet. Mixed query selection (§3.5): the boxes of the best proposals become the queries' anchors, while their
contents are learned. Look forward twice (§3.6): a layer's boxes also train the layer before it, through the reference
that it made. Contrastive denoising (§3.3) is in `siamdetr.models.contrastive_denoising`.

As the official code: a reference comes from the decoder's output *before* the final norm, the prediction of the same
layer from the normalised one; one class head and one box head serve all layers, the proposals have their own; query
positions are of the box as a fraction of the *padded* finest level, so that an image's answers depend a little on the
size it is padded to.
Ours: any width divisible by 4 (the official code assumes 256); with a softmax classifier the score of a proposal leaves
"no object" out.
"""

from __future__ import annotations

import torch
from torch import nn

from siamdetr.models.attention import mask_bias
from siamdetr.models.backbone.pyramid import LevelProjections
from siamdetr.models.contrastive_denoising import contrastive_queries
from siamdetr.models.dab_detr import REFERENCE_EPS
from siamdetr.models.deformable.attention import describe_levels, place_on_levels
from siamdetr.models.deformable.encoder import DeformableEncoder
from siamdetr.models.deformable_detr import DeformableDecoderLayer
from siamdetr.models.denoising import Draws
from siamdetr.models.heads import MLP, Heads, place_boxes, shared_heads
from siamdetr.models.parts import VariantParts, initialize_transformer
from siamdetr.models.position import box_positions
from siamdetr.models.queries import QuerySource
from siamdetr.models.query_selection import MixedSelection, fewer_queries, join_anchors
from siamdetr.settings.detector import DenoisingSettings, DetectorSettings
from siamdetr.structures.model import Decoded, Memory, Queries
from siamdetr.structures.targets import Targets


class ChosenQueries(QuerySource):
    """Learned contents, whose boxes the encoder chooses; in training denoising queries before them."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__(region_width=settings.dim)
        self.content = nn.Embedding(settings.num_queries, settings.dim)
        self.labels = nn.Embedding(settings.num_classes, settings.dim)

    def forward(self, batch_size: int) -> Queries:
        """The matching queries alone, for `batch_size` images: content [B, Q, D], no position, no anchors."""
        content = self.content.weight
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

        The draws are for 2 x groups x M boxes; the number of groups is `group_count`'s.
        """
        return contrastive_queries(self(len(targets.counts)), targets, settings, draws, labels=self.labels)


class DinoDecoder(nn.Module):
    """`decoder_layers` layers of Deformable DETR, each around the boxes that the one before it refined."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        dim = settings.dim
        self.dim = dim
        self.layers = nn.ModuleList(DeformableDecoderLayer(settings) for _ in range(settings.decoder_layers))
        self.norm = nn.LayerNorm(dim)
        self.position_head = MLP(2 * dim, dim, dim, num_layers=2)
        self.proposer = MixedSelection(settings)

    def forward(self, queries: Queries, memory: Memory, heads: Heads) -> Decoded:
        """Decode queries with content.

        Args:
            queries: of all images; only denoising queries bring anchors. What a pretext knows of a query is in its
                content.
            memory: the encoded images.
            heads: the detector's; the box head also moves the references.
        Returns:
            References [L, B, Q, 4]: the first are the anchors and the chosen boxes, detached, the others are the boxes
            of the layer before. The proposals are the chosen ones.
        Raises:
            ValueError: there are fewer cells than queries to choose.
        """
        queries = fewer_queries(queries, memory)
        chosen = self.proposer(memory, heads, queries.content.shape[1] - queries.num_denoising)
        current = join_anchors(queries.anchors, chosen.boxes.detach())
        levels = describe_levels(memory.shapes, memory.padding, device=memory.tokens.device)
        self_bias = mask_bias(queries.attention_mask, memory.tokens.dtype)
        content, hidden, references = queries.content, [], [current]
        for index, layer in enumerate(self.layers):
            sine = box_positions(place_on_levels(current, levels)[:, :, 0], self.dim)
            position = self.position_head(sine.to(content.dtype))
            content = layer(content, position, current, memory, levels=levels, self_bias=self_bias)
            hidden.append(self.norm(content))
            if index < len(self.layers) - 1:
                moved = place_boxes(heads.offsets(content, index), current, eps=REFERENCE_EPS)
                references.append(moved)  # not detached: look forward twice
                current = moved.detach()
        stack, starts = torch.stack(hidden), torch.stack(references)
        boxes = place_boxes(heads.box_head(stack), starts, eps=REFERENCE_EPS)
        return Decoded(stack, boxes, references=starts, proposals=chosen.outputs())


def build_dino(settings: DetectorSettings, channels: tuple[int, ...]) -> VariantParts:
    """The parts of DINO; cells have no half-cell shift."""
    parts = VariantParts(
        encoder=DeformableEncoder(settings, shift=0.0),
        queries=ChosenQueries(settings),
        decoder=DinoDecoder(settings),
        input_projection=LevelProjections(channels, settings.dim, settings.levels),
        heads=shared_heads(settings, proposals=True),
    )
    initialize_transformer(parts.encoder, parts.decoder)
    return parts
