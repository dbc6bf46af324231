"""Queries conditioned on regions (Siamese DETR, UP-DETR).

How a query is given its region, which queries may be matched with it, and whether the detector uses it.

Officially the region is added to the query position, and any query of the image may be matched with any region:
nothing then shows whether the regions are used (arXiv:2303.18144, §3.3; arXiv:2011.09094, §3.2).
Ours, each by a setting (`PromptSettings`):
- the region is added to the query content, which attention compares with the image;
- a region is matched among its own queries only;
- some queries get no region;
- the mean region is folded into the learned content, so that finetuning, where no query has a region, starts from
  queries that the decoder has seen.

In names, a query is "told" a region that it is conditioned on.

Letters in shapes: B images, P regions, Q queries, M = B P targets, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siamdetr.boxes import cxcywh_to_xyxy, elementwise_iou
from siamdetr.models.backbone.pyramid import Maps, as_levels
from siamdetr.models.criterion.losses import DetectionCriterion
from siamdetr.models.criterion.matcher import Matches, match
from siamdetr.models.detector import Detector, Outputs
from siamdetr.settings.pretext import PromptSettings
from siamdetr.structures.model import Queries
from siamdetr.structures.targets import Targets

Told = Literal["own", "other", "none"]  # regions of the query's image, of another image, or none
_MEMORY = 0.99  # of the mean region, a step
_TEMPERATURE = 0.03  # of the softmax over cosines


def check_start(settings: PromptSettings, detector: Detector, *, where: str) -> None:
    """Check that with `start="similar"` a detector has learned reference points to replace.

    Raises:
        ValueError: it has none, or its encoder chooses them.
    """
    if settings.start == "similar" and not detector.settings.learns_references:
        raise ValueError(
            f"{where}: start='similar' replaces learned reference points, which the variant {detector.settings.variant} does not "
            "have; choose start=learned, or a deformable or DAB variant whose queries the encoder does not choose"
        )


class RegionPrompt(nn.Module):
    """Conditions queries on regions.

    Args:
        settings: where a region is added, which queries may be matched with it, and the share of queries without a
            region.
        width: D, `detector.region_width`.

    Attributes: `mean`: [D] running mean of the projected regions, with `fold_mean`.
    """

    mean: Tensor | None
    updates: Tensor | None

    def __init__(self, settings: PromptSettings, width: int) -> None:
        super().__init__()
        self.settings = settings
        folds = settings.fold_mean
        self.register_buffer("mean", torch.zeros(width) if folds else None)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64) if folds else None)

    def features(self, regions: Tensor) -> Tensor:
        """The input [..., F] of the projection, from region features."""
        return F.layer_norm(regions, regions.shape[-1:]) if self.settings.normalize_features else regions

    def draw(self, queries: Queries, kind: Told = "own") -> Tensor | None:
        """[B, Q] bool, True = the query gets its region: drawn in training, none with `kind` "none".

        None: all queries do.
        """
        images, num_queries = queries.content.shape[:2]
        if kind == "none":
            return torch.zeros(images, num_queries, dtype=torch.bool, device=queries.content.device)
        if not (self.training and self.settings.mask_ratio):
            return None
        drawn = 1 if self.settings.mask_by == "image" else num_queries
        told = torch.rand(images, drawn, device=queries.content.device) > self.settings.mask_ratio
        return told.expand(-1, num_queries)

    def forward(
        self, queries: Queries, regions: Tensor, told: Tensor | None = None, references: Tensor | None = None
    ) -> Queries:
        """The queries with their regions.

        Args:
            queries: of B images.
            regions: [B, P, D] projected features; the first Q/P queries are told the first region, and so on.
            told: [B, Q] bool, False = no region (with `fold_mean`, the mean region); None: all queries have one.
            references: of `references`; None: the learned ones.
        """
        if self.training:
            self._remember(regions)
        each = regions.repeat_interleave(queries.content.shape[1] // regions.shape[1], dim=1)  # [B, Q, D]
        if told is not None:
            nothing = torch.zeros_like(each) if self.mean is None else self.mean.to(each.dtype).expand_as(each)
            each = torch.where(told[..., None], each, nothing)
        if references is not None:
            queries = dataclasses.replace(queries, anchors=references)
        return condition_queries(queries, each, content=self.settings.conditioning == "content")

    def references(
        self,
        detector: Detector,
        queries: Queries,
        view: tuple[Maps, Tensor],
        regions: Tensor,
        told: Tensor | None = None,
    ) -> Tensor | None:
        """References [B, Q, 2 | 4] of the first layer; None: the learned ones.

        Args:
            detector: that the queries belong to.
            queries: of B images.
            view: frozen features of the B images, and their padding [B, H, W] bool.
            regions: [B, P, F] features of the queries' regions, not projected.
            told: as in `forward`; a query without a region keeps its learned reference.
        """
        if self.settings.start == "learned":
            return None
        learned = detector.first_references(queries)
        assert learned is not None  # `check_start`
        places = similar_places(*view, regions).to(learned.dtype)
        each = places.repeat_interleave(learned.shape[1] // places.shape[1], dim=1)  # [B, Q, 2]
        placed = torch.cat([each, learned[..., 2:]], dim=-1)  # sizes stay learned
        return placed if told is None else torch.where(told[..., None], placed, learned)

    def allowed(self, outputs: Outputs, told: Tensor | None = None) -> Tensor | None:
        """[M, Q] bool, True = the query may be matched with the region: it has this region, or none.

        None: all queries may be.
        """
        if self.settings.matching == "image":
            return None
        _, images, num_queries, _ = outputs.boxes.shape
        group = torch.arange(num_queries, device=outputs.boxes.device) // (num_queries // self.settings.num_regions)
        region = torch.arange(self.settings.num_regions, device=outputs.boxes.device)
        own = (group == region[:, None]).repeat(images, 1)
        return own if told is None else own | ~told.repeat_interleave(self.settings.num_regions, dim=0)

    @torch.no_grad()
    def told_share(self, outputs: Outputs, matches: Matches, told: Tensor | None = None) -> dict[str, Tensor]:
        """`monitor_told_share`: the share of regions matched with a query that was given them (last layer).

        Chance is 1 / P.
        """
        last = slice(len(matches.query) - len(matches.query) // len(outputs.boxes), None)
        image, query, target = matches.image[last], matches.query[last], matches.target[last]
        regions = self.settings.num_regions
        own = query // (outputs.boxes.shape[2] // regions) == target % regions
        if told is not None:
            own = own & told[image, query]
        return {"monitor_told_share": own.float().sum() / max(1, len(own))}

    def folded(self, detector: Detector) -> Detector:
        """Fold the mean region into the detector's learned content, in place.

        Nothing happens without `fold_mean` or a learned content.
        """
        content = getattr(detector.learned_queries, "content", None)
        if self.mean is not None and self.settings.conditioning == "content" and isinstance(content, nn.Embedding):
            with torch.no_grad():
                content.weight.add_(self.mean)
        return detector

    @torch.no_grad()
    def _remember(self, regions: Tensor) -> None:
        """Update the running mean: a plain mean at first, then an exponential one."""
        if self.mean is None or self.updates is None:
            return
        seen = self.updates.float()
        self.mean.lerp_(regions.detach().float().mean((0, 1)), 1 - torch.clamp(seen / (seen + 1), max=_MEMORY))
        self.updates.add_(1)


def condition_queries(queries: Queries, regions: Tensor, *, content: bool = False) -> Queries:
    """Add a region to every query: the first Q/P queries get the first region, and so on.

    Args:
        queries: of B images.
        regions: [B, P, detector.region_width] projected region features; P divides Q.
        content: True = add it to the content in every variant.
    Returns:
        The queries with the region added to their position. Ours: to their content where `content` is set, and where a
        variant has no learned position (DAB, DN), which the paper leaves open. DN's last channel, which marks denoising
        queries, does not change.
    """
    repeated = regions.repeat_interleave(queries.content.shape[1] // regions.shape[1], dim=1)  # [B, Q, D]
    if content or queries.position is None:
        reserved = queries.content.shape[-1] - regions.shape[-1]
        return dataclasses.replace(queries, content=queries.content + F.pad(repeated, (0, reserved)))
    return dataclasses.replace(queries, position=queries.position + repeated)


@torch.no_grad()
def similar_places(features: Maps, padding: Tensor, regions: Tensor) -> Tensor:
    """The place in an image that is most similar to a region.

    The mean of its cell centres, weighted by the softmax of the cells' cosine similarities with the region.

    Args:
        features: [B, F_l, h, w] frozen features of each level, finest first.
        padding: [B, H, W] bool of the images, True = padded, which is at the right and bottom.
        regions: [B, P, F] features of regions, those of the levels side by side.
    Returns:
        [B, P, 2] (x, y) fractions of the unpadded images, float32.
    """
    levels = [level.float() for level in as_levels(features)]
    parts = regions.float().split_with_sizes([level.shape[1] for level in levels], dim=-1)
    finest = levels[0].shape[-2:]
    cosines = torch.stack(
        [
            F.interpolate(
                torch.einsum("bpf,bfhw->bphw", F.normalize(part, dim=-1), F.normalize(level, dim=1)),
                size=finest,
                mode="bilinear",
            )
            for part, level in zip(parts, levels, strict=True)
        ]
    ).mean(0)
    inside = ~padding
    extent = torch.stack(
        [inside[:, 0].sum(1), inside[:, :, 0].sum(1)], dim=-1
    ).float()  # [B, 2] width and height, pixels
    places = (
        _cell_places(finest, (padding.shape[1], padding.shape[2]), padding.device)[None] / extent[:, None]
    )  # [B, hw, 2]
    outside = (places >= 1).any(-1)[:, None]  # [B, 1, hw]
    weights = (cosines.flatten(2) / _TEMPERATURE).masked_fill(outside, -torch.inf).softmax(-1)
    return weights @ places


def _cell_places(cells: tuple[int, ...], pixels: tuple[int, int], device: torch.device) -> Tensor:
    """[h w, 2] (x, y) centres of cells, pixels of the padded images."""
    y, x = (
        (torch.arange(count, device=device) + 0.5) * (length / count)
        for count, length in zip(cells, pixels, strict=True)
    )
    return torch.stack([x.repeat(len(y)), y.repeat_interleave(len(x))], dim=-1)


def group_mask(num_queries: int, num_groups: int, device: torch.device) -> Tensor:
    """[Q, Q] bool, True = the row's query must not attend to the column's.

    Queries of one region attend to each other only.

    `num_groups` divides `num_queries`; the groups are those of `condition_queries`.
    """
    group = torch.arange(num_queries, device=device) // (num_queries // num_groups)
    return group[:, None] != group


@torch.no_grad()
def region_usage(
    decode: Callable[[Told], Outputs], targets: Targets, criterion: DetectionCriterion, allowed: Tensor | None
) -> dict[str, float]:
    """Measure whether the detector uses the regions that its queries are given.

    The mean IoU of matched boxes with the image's own regions, with those of another image, and with none.

    Args:
        decode: the outputs with regions of a kind.
        targets: of the images.
        criterion: that matches.
        allowed: as in `match`.
    Returns:
        `regions_own_iou`, `regions_other_iou`, `regions_none_iou`, of the last layer. Own above other: the regions are
        used.
    """
    found: dict[str, float] = {}
    kinds: tuple[Told, ...] = ("own", "other", "none")
    for kind in kinds:
        outputs = decode(kind)
        logits, boxes = outputs.logits[-1:].float(), outputs.boxes[-1:].float()
        matches = match(logits, boxes, targets, criterion.settings, criterion.classifier, allowed=allowed)
        matched, wanted = boxes[0, matches.image, matches.query], targets.boxes[matches.target].float()
        overlaps = elementwise_iou(cxcywh_to_xyxy(matched), cxcywh_to_xyxy(wanted))
        found[f"regions_{kind}_iou"] = float(overlaps.sum() / max(1, len(overlaps)))
    return found
