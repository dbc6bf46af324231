"""Denoising queries (DN-DETR, Li et al. 2022, arXiv:2203.01305): in training the decoder also repairs noised copies of the targets.

Every target box appears once in each of several groups, with a noised label as content and a noised box as anchor. These queries
stand before the learned ones, are not matched but answer for the box they were made from, and exist in training only. The
last channel of the content says what a query is: 1 denoising, 0 matching.

As the official code: a new label may be the right one; boxes are noised and clamped as (cx, cy, w, h), so that they may leave the image
and lose their size; slots that an image with fewer boxes leaves empty take part, with content zero and the box (.5, .5, .5, .5).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from siamdetr.boxes import inverse_sigmoid
from siamdetr.models.dab_deformable_detr import DeformableAnchorDecoder
from siamdetr.models.dab_detr import REFERENCE_EPS, AnchorDecoder, RescalingEncoder, repeat_for_patterns
from siamdetr.models.deformable.encoder import DeformableEncoder
from siamdetr.models.parts import VariantParts
from siamdetr.settings.detector import DenoisingSettings, DetectorSettings
from siamdetr.structures.model import Queries
from siamdetr.structures.targets import Targets

# Channels of the content that say "denoising"; a pretext must not write into them.
INDICATOR_CHANNELS = 1


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch; N noised boxes, ordered by group, then as the targets (image, box)."""

    label_chance: Tensor  # [N] uniform in [0, 1): below `label_noise` the label is replaced
    new_label: Tensor  # [N] int64 in 0..C-1, of which only the replaced ones are used
    box_shift: Tensor  # [N, 4] uniform in [0, 1), .5 = stays

    @classmethod
    def sample(cls, count: int, num_classes: int, *, device: torch.device, generator: Generator | None = None) -> Draws:
        """Numbers for `count` noised boxes from a generator on `device`; None: torch's own."""
        return cls(
            label_chance=torch.rand(count, device=device, generator=generator),
            new_label=torch.randint(num_classes, (count,), device=device, generator=generator),
            box_shift=torch.rand(count, 4, device=device, generator=generator),
        )


def add_noise(targets: Targets, settings: DenoisingSettings, draws: Draws) -> tuple[Tensor, Tensor]:
    """Noised copies of the targets.

    Args:
        targets: M boxes.
        settings: how many groups, how much noise.
        draws: for groups x M boxes.
    Returns:
        Labels [groups M] and boxes [groups M, 4] (cx, cy, w, h) fractions: the centre moved by at most `box_noise` half widths
        and half heights, the size by that share of itself, then each clamped to [0, 1].
    Raises:
        ValueError: the draws are for another number of boxes.
    """
    count = settings.groups * len(targets.labels)
    if len(draws.label_chance) != count:
        raise ValueError(
            f"denoising: {settings.groups} groups of {len(targets.labels)} boxes need draws for {count}, got "
            f"{len(draws.label_chance)}; draw with Draws.sample({count}, ...)"
        )
    labels, boxes = targets.labels.repeat(settings.groups), targets.boxes.float().repeat(settings.groups, 1)
    labels = torch.where(draws.label_chance < settings.label_noise, draws.new_label, labels)
    reach = torch.cat([boxes[:, 2:] / 2, boxes[:, 2:]], dim=-1)
    boxes = boxes + (draws.box_shift * 2 - 1) * reach * settings.box_noise
    return labels, boxes.clamp(0, 1)


def denoising_slots(counts: tuple[int, ...], groups: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each noised box sits: image [groups M] and query [groups M], both int64, ordered as in `Draws`.

    A group has as many queries as the fullest image has boxes. Made on the device from counts known to the host: no transfer.
    """
    image = torch.cat([torch.full((count,), i, device=device) for i, count in enumerate(counts)])
    place = torch.cat([torch.arange(count, device=device) for count in counts])
    starts = torch.arange(groups, device=device)[:, None] * max(counts)
    return image.repeat(groups), (starts + place).flatten()


def group_mask(groups: int, group_size: int, num_matching: int, device: torch.device) -> Tensor:
    """Who must not look at whom: [Q, Q] bool, True = row must not look at column, Q = groups x size + matching.

    Nobody but a group itself sees its denoising queries; everybody sees the matching ones.
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
        label_content: [groups M, D - 1] what stands for the noised labels.
        noised_boxes: [groups M, 4] (cx, cy, w, h) fractions.
        groups: of denoising queries.
    """
    if queries.anchors is None:
        raise ValueError("denoising: expected queries with anchors [B, Q, 4], got None; denoising needs a DAB variant")
    images, num_matching, dim = queries.content.shape
    device, group_size = queries.content.device, max(targets.counts)
    slots = denoising_slots(targets.counts, groups, device)
    indicated = torch.cat([label_content, torch.ones_like(label_content[:, :INDICATOR_CHANNELS])], dim=-1)
    content = queries.content.new_zeros(images, groups * group_size, dim)
    content = content.index_put(slots, indicated.to(content.dtype))
    # The way through the logit keeps anchors off 0 and 1, where no sigmoid reaches.
    anchors = torch.full_like(content[..., :4], 0.5, dtype=queries.anchors.dtype)
    anchors = anchors.index_put(slots, inverse_sigmoid(noised_boxes, REFERENCE_EPS).sigmoid().to(anchors.dtype))
    return dataclasses.replace(
        queries,
        content=torch.cat([content, queries.content], dim=1),
        anchors=torch.cat([anchors, queries.anchors], dim=1),
        attention_mask=group_mask(groups, group_size, num_matching, device),
        num_denoising=groups * group_size,
    )


class DenoisingQueries(nn.Module):
    """Learned boxes with learned content, and in training denoising queries before them.

    Args:
        settings: the detector's.
        contents: 1, common to all boxes (DN-DETR), or one a box (DN-DAB-Deformable-DETR).
    """

    def __init__(self, settings: DetectorSettings, contents: int) -> None:
        super().__init__()
        dim = settings.dim - INDICATOR_CHANNELS
        self.num_classes = settings.num_classes
        self.anchors = nn.Embedding(settings.num_queries, 4)  # before the sigmoid
        self.content = nn.Embedding(contents, dim)
        self.labels = nn.Embedding(settings.num_classes, dim)
        self.patterns = nn.Embedding(settings.num_patterns, settings.dim) if settings.num_patterns else None

    def forward(self, batch_size: int) -> Queries:
        """The matching queries alone, for `batch_size` images: anchors [B, Q, 4], content, no position."""
        content = nn.functional.pad(self.content.weight, (0, INDICATOR_CHANNELS))  # [1 | Q, D]
        content, anchors = repeat_for_patterns(content, self.anchors.weight.sigmoid(), self.patterns)
        if self.training:  # several processes wait for every gradient, also where nothing was noised
            content = content + 0 * self.labels.weight.sum()
        return Queries(
            content=content.expand(batch_size, -1, -1), position=None, anchors=anchors.expand(batch_size, -1, -1)
        )

    def keep_labels(self, first: int, last: int) -> None:
        """Forget, in place, the contents of all labels but first..last-1, which become 0, 1, ..."""
        kept = self.labels.weight[first:last].detach().clone()
        self.labels = nn.Embedding(last - first, kept.shape[1], _weight=kept)
        self.num_classes = last - first

    def denoise(self, targets: Targets, settings: DenoisingSettings, draws: Draws | None = None) -> Queries:
        """Denoising and matching queries for the images of `targets`; only the matching ones where no image has a box."""
        queries: Queries = self(len(targets.counts))
        count = settings.groups * len(targets.labels)
        if count == 0:
            return queries
        draws = draws or Draws.sample(count, self.num_classes, device=queries.content.device)
        labels, boxes = add_noise(targets, settings, draws)
        return prepend_denoising(
            queries, targets, label_content=self.labels(labels), noised_boxes=boxes, groups=settings.groups
        )


def build_dn(settings: DetectorSettings) -> VariantParts:
    """Encoder, queries and decoder of DN-DETR: DAB-DETR's with queries that say what they are."""
    return VariantParts(
        encoder=RescalingEncoder(settings),
        queries=DenoisingQueries(settings, contents=1),
        decoder=AnchorDecoder(settings),
        boxes_start_at_reference=True,
        refines=True,
        reference_eps=REFERENCE_EPS,
        reserved_channels=INDICATOR_CHANNELS,
    )


def build_dn_deformable(settings: DetectorSettings) -> VariantParts:
    """Encoder, queries and decoder of DN-DAB-Deformable-DETR: DAB-Deformable-DETR's with queries that say what they are."""
    return VariantParts(
        encoder=DeformableEncoder(settings),
        queries=DenoisingQueries(settings, contents=settings.num_queries),
        decoder=DeformableAnchorDecoder(settings),
        boxes_start_at_reference=True,
        refines=True,
        reference_eps=REFERENCE_EPS,
        deformable=True,
        reserved_channels=INDICATOR_CHANNELS,
    )
