"""Query selection: the encoder proposes a box at each cell, and the decoder starts from the best.

Deformable DETR calls this "two-stage" (Zhu et al. 2020, arXiv:2010.04159, §4.2); DINO and RT-DETR build on it.

Ours: a proposal that does not count has the box 1, 1, 1, 1 without infinite logits in between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from siamdetr.models.deformable.attention import describe_levels
from siamdetr.models.deformable.encoder import cell_centres
from siamdetr.models.heads import Heads, place_boxes
from siamdetr.settings.detector import DetectorSettings
from siamdetr.structures.model import Memory, Outputs, Queries

_PROPOSAL_SIZE = 0.05  # of the finest level, as a fraction of the image; each coarser level doubles it
_MARGIN = 0.01  # boxes whose centre or size is nearer to 0 or 1 do not count


@dataclass(frozen=True)
class Proposals:
    """A class score and a box at each of N cells, or at those that were chosen."""

    features: Tensor  # [B, N, D] what they were predicted from
    logits: Tensor  # [B, N, C]
    boxes: Tensor  # [B, N, 4] (cx, cy, w, h) fractions of the unpadded image

    def take(self, cells: Tensor) -> Proposals:
        """The proposals of the cells [B, K]."""
        index = cells[..., None]
        return Proposals(
            *(part.gather(1, index.expand(-1, -1, part.shape[-1])) for part in (self.features, self.logits, self.boxes))
        )

    def outputs(self) -> Outputs:
        """The proposals as predictions of one layer, for their own losses."""
        return Outputs(self.logits[None], self.boxes[None], self.features[None])


def propose(memory: Memory, heads: Heads, project: Callable[[Tensor], Tensor]) -> Proposals:
    """Predict a class and a box at every cell of the memory.

    Args:
        memory: the encoded images.
        heads: of which the last class head and box head are used.
        project: [B, N, D] cells -> features; padded cells and cells near the border are zeroed before it.

    As in the official code these cells are kept, with an empty feature and the box 1, 1, 1, 1.
    """
    anchors, valid = cell_anchors(memory)
    features = project(memory.tokens.masked_fill(~valid, 0.0))
    logits, offsets = heads.of_proposals(features)
    return Proposals(features, logits, torch.where(valid, place_boxes(offsets, anchors), 1.0))


def best_cells(scores: Tensor, count: int) -> Tensor:
    """[B, N] scores -> [B, count] cells, best first.

    Raises:
        ValueError: there are fewer cells than queries.
    """
    if not torch.compiler.is_exporting() and scores.shape[1] < count:
        raise ValueError(
            f"two-stage decoder: {count} queries are chosen from the feature cells, got {scores.shape[1]} cells; take larger "
            "images or fewer queries"
        )
    return scores.topk(count, dim=1).indices


def fewer_queries(queries: Queries, memory: Memory) -> Queries:
    """The queries, at most as many as there are cells; in a small image every cell becomes a query.

    Denoising queries stay. Ours: the official code ends with an error there.

    Raises:
        ValueError: a mask groups the queries (a pretext), so none of them can be left out.
    """
    first, cells = queries.num_denoising, memory.tokens.shape[1]
    count, kept = queries.content.shape[1] - first, first + cells
    if torch.compiler.is_exporting() or count <= cells:
        return queries
    mask = queries.attention_mask
    if mask is not None and first == 0:
        raise ValueError(
            f"two-stage decoder: {count} queries are chosen from the feature cells, got {cells} cells; take larger images or fewer queries"
        )
    return dataclasses.replace(
        queries,
        content=queries.content[:, :kept],
        position=None if queries.position is None else queries.position[:, :kept],
        attention_mask=None if mask is None else mask[:kept, :kept],
    )


def cell_anchors(memory: Memory) -> tuple[Tensor, Tensor]:
    """A box around each cell [B, N, 4], fractions of the unpadded image, and its validity [B, N, 1] bool."""
    levels = describe_levels(memory.shapes, memory.padding, device=memory.tokens.device)
    centres = cell_centres(levels, memory.tokens.shape[0])
    sizes = [
        torch.full((height * width, 2), _PROPOSAL_SIZE * 2.0**index, device=centres.device)
        for index, (height, width) in enumerate(memory.shapes)
    ]
    anchors = torch.cat([centres, torch.cat(sizes).expand(centres.shape[0], -1, -1)], dim=-1)
    valid = ((anchors > _MARGIN) & (anchors < 1 - _MARGIN)).all(-1, keepdim=True)
    return anchors, valid if memory.padding is None else valid & ~memory.padding[..., None]


class MixedSelection(nn.Module):
    """Propose a box at every cell, and choose the best by their largest class logit."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        self.no_object = int(settings.classifier == "softmax")  # the last logits
        self.project = nn.Linear(settings.dim, settings.dim)
        self.norm = nn.LayerNorm(settings.dim)

    def forward(self, memory: Memory, heads: Heads, count: int) -> Proposals:
        """The `count` best proposals of each image, best first."""
        proposed = propose(memory, heads, lambda tokens: self.norm(self.project(tokens)))
        classes = proposed.logits.shape[-1] - self.no_object
        return proposed.take(best_cells(proposed.logits[..., :classes].amax(-1), count))


def join_anchors(anchors: Tensor | None, chosen: Tensor) -> Tensor:
    """Anchors of denoising queries [B, P, 4], then chosen boxes [B, Q, 4]."""
    return chosen if anchors is None else torch.cat([anchors, chosen], dim=1)
