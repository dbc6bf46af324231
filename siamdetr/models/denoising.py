"""Denoising queries (DN-DETR, Li et al. 2022, arXiv:2203.01305): in training the decoder also
reconstructs noised copies of the targets.

Every target box appears once in each of several groups, with a noised label as content and a noised box as anchor.
These queries precede the learned ones and exist in training only. Their target is the box that they were made from,
without matching. The last channel of the content is 1 for denoising queries, and 0 for matching ones.

As the official code: a new label may be the right one; boxes are noised and clamped as (cx, cy, w, h), so that they may
leave the image and lose their size; slots that an image with fewer boxes leaves empty take part, with content zero and
the box (.5, .5, .5, .5).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from siamdetr.boxes import inverse_sigmoid
from siamdetr.settings.detector import DenoisingSettings
from siamdetr.structures.model import Queries
from siamdetr.structures.targets import Targets

# Channels of the content that mark denoising queries; a pretext must not write into them.
INDICATOR_CHANNELS = 1
# Distance that noised boxes are kept from 0 and 1, as DAB-DETR's references.
ANCHOR_EPS = 1e-3


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch; N noised boxes, ordered by group, then as the targets (image, box)."""

    label_chance: Tensor  # [N] uniform in [0, 1): below `label_noise` the label is replaced
    new_label: Tensor  # [N] int64 in 0..C-1, of which only the replaced ones are used
    box_shift: Tensor  # [N, 4] uniform in [0, 1), .5 = stays

    @classmethod
    def sample(cls, count: int, num_classes: int, *, device: torch.device, generator: Generator | None = None) -> Draws:
        """Draw numbers for `count` noised boxes on `device`; generator None: torch's own."""
        return cls(
            label_chance=torch.rand(count, device=device, generator=generator),
            new_label=torch.randint(num_classes, (count,), device=device, generator=generator),
            box_shift=torch.rand(count, 4, device=device, generator=generator),
        )


@dataclass(frozen=True)
class EmptySlots:
    """Anchors of denoising queries: noised boxes keep `eps` from 0 and 1, empty slots are `value`.

    An empty slot has `value` in all four coordinates.
    """

    value: float = 0.5
    eps: float = ANCHOR_EPS


def group_count(settings: DenoisingSettings, targets: Targets) -> int:
    """The number of groups of denoising queries for the images of `targets`; 0 without boxes."""
    if not len(targets.labels):
        return 0
    return max(1, settings.queries // max(targets.counts)) if settings.queries else settings.groups


def check_draws(draws: Draws, copies: int, targets: Targets, *, what: str = "groups") -> None:
    """Check that the draws are for `copies` copies of the targets; raises ValueError."""
    count = copies * len(targets.labels)
    if len(draws.label_chance) != count:
        raise ValueError(
            f"denoising: {copies} {what} of {len(targets.labels)} boxes need draws for {count}, got "
            f"{len(draws.label_chance)}; draw with Draws.sample({count}, ...)"
        )


def add_noise(targets: Targets, settings: DenoisingSettings, draws: Draws) -> tuple[Tensor, Tensor]:
    """Noised copies of the targets.

    Args:
        targets: M boxes.
        settings: how many groups, how much noise.
        draws: for groups x M boxes.
    Returns:
        Labels [groups M] and boxes [groups M, 4] (cx, cy, w, h) fractions: the centre moved by at most `box_noise` half
        widths and half heights, the size by that share of itself, then each clamped to [0, 1].
    Raises:
        ValueError: the draws are for another number of boxes.
    """
    groups = group_count(settings, targets)
    check_draws(draws, groups, targets)
    labels, boxes = targets.labels.repeat(groups), targets.boxes.float().repeat(groups, 1)
    labels = torch.where(draws.label_chance < settings.label_noise, draws.new_label, labels)
    reach = torch.cat([boxes[:, 2:] / 2, boxes[:, 2:]], dim=-1)
    boxes = boxes + (draws.box_shift * 2 - 1) * reach * settings.box_noise
    return labels, boxes.clamp(0, 1)


def denoising_slots(
    counts: tuple[int, ...], groups: int, device: torch.device, *, group_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The position of each noised box.

    Image [groups M] and query [groups M], both int64, ordered as in `Draws`.

    Args:
        counts: boxes of each image.
        groups: of denoising queries.
        device: of the result; it is made there from counts known to the host: no transfer.
        group_size: queries of a group, of which the boxes take the first ones; None: as many as the fullest image has
            boxes.
    """
    image = torch.cat([torch.full((count,), i, device=device) for i, count in enumerate(counts)])
    place = torch.cat([torch.arange(count, device=device) for count in counts])
    starts = torch.arange(groups, device=device)[:, None] * (group_size or max(counts))
    return image.repeat(groups), (starts + place).flatten()


def group_mask(groups: int, group_size: int, num_matching: int, device: torch.device) -> Tensor:
    """Attention mask [Q, Q] bool, True = row must not attend to column, with Q = groups x size + matching.

    Only the queries of a group attend to its denoising queries; all queries attend to the matching ones.
    """
    group = torch.arange(groups * group_size, device=device).div(group_size, rounding_mode="floor")
    group = torch.cat([group, torch.full((num_matching,), -1, device=device)])
    return (group >= 0) & (group[:, None] != group)


def prepend_denoising(
    queries: Queries, targets: Targets, *, label_content: Tensor, noised_boxes: Tensor, groups: int
) -> Queries:
    """Put groups of denoising queries before `queries`.

    Args:
        queries: the matching ones, with content [B, Q, D] and anchors [B, Q, 4].
        targets: M boxes of B images, at least one.
        label_content: [groups M, D - 1] embeddings of the noised labels.
        noised_boxes: [groups M, 4] (cx, cy, w, h) fractions.
        groups: of denoising queries.
    """
    if queries.anchors is None:
        raise ValueError("denoising: expected queries with anchors [B, Q, 4], got None; denoising needs a DAB variant")
    images, num_matching, _ = queries.content.shape
    device, group_size = queries.content.device, max(targets.counts)
    slots, shape = denoising_slots(targets.counts, groups, device), (images, groups * group_size)
    indicated = torch.cat([label_content, torch.ones_like(label_content[:, :INDICATOR_CHANNELS])], dim=-1)
    content = denoising_content(indicated, slots, shape, queries.content)
    anchors = denoising_anchors(noised_boxes, slots, shape).to(queries.anchors.dtype)
    return dataclasses.replace(
        queries,
        content=torch.cat([content, queries.content], dim=1),
        anchors=torch.cat([anchors, queries.anchors], dim=1),
        attention_mask=group_mask(groups, group_size, num_matching, device),
        num_denoising=groups * group_size,
    )


def denoising_content(values: Tensor, slots: tuple[Tensor, Tensor], shape: tuple[int, int], like: Tensor) -> Tensor:
    """[N, D] contents in their slots of `shape` (B, P), zero elsewhere: [B, P, D] in the type of `like`."""
    return like.new_zeros(*shape, values.shape[-1]).index_put(slots, values.to(like.dtype))


def denoising_anchors(
    boxes: Tensor,
    slots: tuple[Tensor, Tensor],
    shape: tuple[int, int],
    empty: EmptySlots = EmptySlots(),
) -> Tensor:
    """[N, 4] noised boxes in their slots of `shape` (B, P), as `empty` says elsewhere: [B, P, 4].

    Passing through the logit keeps anchors away from 0 and 1, which no sigmoid reaches.
    """
    kept = inverse_sigmoid(boxes, empty.eps).sigmoid()
    return kept.new_full((*shape, 4), max(empty.value, empty.eps)).index_put(slots, kept)
