"""Contrastive denoising (DINO, Zhang et al. 2022, arXiv:2203.03605, §3.3).

The decoder repairs targets with little noise, and rejects targets with more noise.

Each group holds every target twice: a positive, whose corners moved by less than half its size times `box_noise`, and a
negative, whose corners moved by once to twice that. Positives should predict their target, negatives "no object".

As the official code: a new label may be the right one; from a noise of .5 on a negative may turn inside out, and its
size becomes the least there is; slots that an image with fewer boxes leaves empty take part, with content zero and the
box (.5, .5, .5, .5).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from siamdetr.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from siamdetr.models.denoising import (
    Draws,
    EmptySlots,
    check_draws,
    denoising_anchors,
    denoising_content,
    denoising_slots,
    group_count,
    group_mask,
)
from siamdetr.settings.detector import DenoisingSettings
from siamdetr.structures.model import Queries
from siamdetr.structures.targets import Targets


def add_contrastive_noise(
    targets: Targets, settings: DenoisingSettings, groups: int, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Noised copies of the targets: of each group all positives, then all negatives.

    Args:
        targets: M boxes.
        settings: how much noise.
        groups: of denoising queries.
        draws: for 2 x groups x M boxes; `box_shift` moves the corners, .5 = a positive's stays.
    Returns:
        Labels [2 groups M] and boxes [2 groups M, 4] (cx, cy, w, h) fractions: each corner coordinate was moved and
        clamped to [0, 1]; the size of a negative may be below 0.
    Raises:
        ValueError: the draws are for another number of boxes.
    """
    copies = 2 * groups
    check_draws(draws, copies, targets, what="half groups")
    labels, boxes = targets.labels.repeat(copies), targets.boxes.float().repeat(copies, 1)
    labels = torch.where(draws.label_chance < settings.label_noise, draws.new_label, labels)
    moves = draws.box_shift * 2 - 1  # in [-1, 1)
    is_negative = torch.arange(copies, device=moves.device).repeat_interleave(len(targets.labels)) % 2 == 1
    further = torch.where(moves < 0, -1.0, 1.0) * is_negative[:, None]
    half = boxes[:, 2:].repeat(1, 2) / 2
    corners = cxcywh_to_xyxy(boxes) + (moves + further) * half * settings.box_noise
    return labels, xyxy_to_cxcywh(corners.clamp(0, 1))


def contrastive_queries(
    queries: Queries,
    targets: Targets,
    settings: DenoisingSettings,
    draws: Draws | None,
    *,
    labels: nn.Embedding,
    slots: EmptySlots = EmptySlots(),  # noqa: B008 - frozen
) -> Queries:
    """Denoising queries followed by matching queries for the images of `targets`.

    Where no image has a box, only the matching queries.

    Args:
        queries: the matching ones, with content [B, Q, D].
        targets: boxes and labels of the B images.
        settings: how many denoising queries, how much noise.
        draws: for 2 x groups x M boxes; the number of groups is `group_count`'s. None: from torch's own generator.
        labels: embedding of each label.
        slots: limits of the anchors of noised boxes, and the anchors of empty slots.
    """
    groups = group_count(settings, targets)
    if groups == 0:
        return queries
    if draws is None:
        count = 2 * groups * len(targets.labels)
        draws = Draws.sample(count, labels.num_embeddings, device=queries.content.device)
    noised, boxes = add_contrastive_noise(targets, settings, groups, draws)
    return prepend_contrastive(
        queries, targets, label_content=labels(noised), noised_boxes=boxes, groups=groups, empty_slots=slots
    )


def prepend_contrastive(
    queries: Queries,
    targets: Targets,
    *,
    label_content: Tensor,
    noised_boxes: Tensor,
    groups: int,
    empty_slots: EmptySlots = EmptySlots(),  # noqa: B008 - frozen
) -> Queries:
    """Put groups of contrastive denoising queries before queries that the encoder will choose boxes for.

    Args:
        queries: the matching ones, with content [B, Q, D].
        targets: M boxes of B images, at least one.
        label_content: [2 groups M, D] embeddings of the noised labels.
        noised_boxes: [2 groups M, 4] (cx, cy, w, h) fractions.
        groups: of denoising queries.
        empty_slots: limits of the anchors of noised boxes, and the anchors of empty slots.
    Returns:
        Content [B, P + Q, D] and anchors [B, P, 4] of the P denoising queries alone.
    """
    group_size = 2 * max(targets.counts)
    images, num_matching, _ = queries.content.shape
    slots = denoising_slots(targets.counts, 2 * groups, queries.content.device)
    shape = (images, groups * group_size)
    content = denoising_content(label_content, slots, shape, queries.content)
    return Queries(
        content=torch.cat([content, queries.content], dim=1),
        position=None,
        anchors=denoising_anchors(noised_boxes, slots, shape, empty_slots),
        attention_mask=group_mask(groups, group_size, num_matching, queries.content.device),
        num_denoising=groups * group_size,
    )
