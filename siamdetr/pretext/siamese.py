"""Siamese DETR (Chen et al. 2023, arXiv:2303.18144).

Detect in one view of an image the regions that the other view shows.

Queries conditioned on the regions of one view decode the other view. Their targets are the boxes of these regions there
(§3.3), and the frozen backbone's features of the regions' crops in the first view.
A global loss brings the encoder's mean features of the two views together.
Ours: both views go through the network in one pass; queries belong to their image in every variant (the official
deformable code gives the whole batch those of the first image); box jitter is clamped to the view.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from siamdetr.models.criterion.layer_losses import layer_weights, name_layers
from siamdetr.models.detector import Detector, Outputs
from siamdetr.models.heads import MLP
from siamdetr.pretext.batches import ViewBatch
from siamdetr.pretext.cached_views import CachedViewBatch
from siamdetr.pretext.common import (
    POOLED_LEVELS,
    Pretext,
    check_detector,
    cosine_distance,
    jitter_boxes,
    match_monitors,
    matched_feature_loss,
    pool_memory,
    region_features,
)
from siamdetr.pretext.prompt import RegionPrompt, Told, check_start, region_usage
from siamdetr.settings.pretext import SiameseSettings


class GlobalHead(nn.Module):
    """Projector and predictor of the encoder's global discrimination (§3.2; as SimSiam, arXiv:2011.10566)."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            nn.Linear(in_dim, dim),
            nn.BatchNorm1d(dim),
            nn.ReLU(),
            nn.Linear(dim, dim),
            nn.BatchNorm1d(dim),
            nn.ReLU(),
            nn.Linear(dim, dim),
            nn.BatchNorm1d(dim),
        )
        self.predictor = nn.Sequential(nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, view: Tensor, other: Tensor) -> Tensor:
        """[B, in_dim] pooled memory of either view -> the symmetric loss, in [0, 4].

        Batch statistics are per view.
        """
        if self.training and len(view) < 2 and any(type(part) is nn.BatchNorm1d for part in self.projector):
            raise ValueError(
                "SiameseDETR: the global loss needs batch statistics, so at least 2 images a process, got 1; raise the batch "
                "size or set weight_global=0"
            )
        projected, wanted = self.projector(view), self.projector(other)
        there = cosine_distance(self.predictor(projected), wanted.detach())
        back = cosine_distance(self.predictor(wanted), projected.detach())
        return (there.mean() + back.mean()) / 2


class SiameseDETR(Pretext):
    """The pretext; the frozen backbone computes the features of regions and crops.

    Args:
        detector: with the class head of pretraining (`pretext_settings`).
        settings: regions, jitter, loss weights. With a weight of 0 there is neither the loss nor its head.
    Raises:
        ValueError: another class head, or queries that do not divide among the regions.

    Attributes: `detector`; `region_projection` (region feature to query), `feature_head` (query to region feature),
    `global_head`; `box_jitter` can be set to 0 afterwards for repeatable queries (it is off in eval mode).
    """

    prompts: ClassVar[bool] = True

    def __init__(self, detector: Detector, settings: SiameseSettings) -> None:
        check_detector(detector.settings, settings.num_regions, where="SiameseDETR")
        check_start(settings, detector, where="SiameseDETR")
        super().__init__(detector, settings.losses)
        self.settings, self.box_jitter = settings, settings.box_jitter
        dim, channels = detector.settings.dim, sum(detector.backbone.channels)
        self.region_projection = nn.Linear(channels, detector.region_width)
        self.prompt = RegionPrompt(settings, detector.region_width)
        self.feature_head = MLP(dim, dim, channels, num_layers=2) if settings.weight_region else None
        self.global_head = (
            GlobalHead(min(detector.settings.levels, POOLED_LEVELS) * dim, dim) if settings.weight_global else None
        )

    @property
    def loss_weights(self) -> dict[str, float]:
        """See `Pretext`."""
        weights = super().loss_weights
        if self.feature_head is not None:
            weights |= layer_weights({"loss_region": self.settings.weight_region}, self.criterion.num_layers)
        if self.global_head is not None:
            weights["loss_global"] = self.settings.weight_global
        return weights

    def forward(self, batch: ViewBatch | CachedViewBatch, generator: Generator | None = None) -> dict[str, Tensor]:
        """Losses of both directions together.

        Args:
            batch: normalised float views, `num_regions` regions each.
            generator: of the box jitter, on the device of the batch; None: torch's own.
        Returns:
            Scalars. Losses, for every decoder layer (aux: suffix `_0`, ...): `loss_class`, `loss_bbox`, `loss_giou`,
            `loss_region`; once: `loss_global`. Detached: the criterion's `class_error`, `cardinality_error`;
            `monitor_query_std`, `monitor_matched_iou` (`match_monitors`), `monitor_told_share`
            (`RegionPrompt.told_share`), `monitor_view_cosine` and `monitor_image_cosine` (of the mean memories of two
            views of an image, and of two images: 1 = the encoder tells no images apart).
        Raises:
            ValueError: the batch has another number of regions, or the global loss has a batch of one image.
            FloatingPointError: a prediction is not finite.
        """
        # The crops come first: nothing else is alive yet.
        wanted = self._wanted_features(batch) if self.feature_head is not None else None
        outputs, pooled, told = self._decode(batch, generator)
        targets, allowed = batch.targets, self.prompt.allowed(outputs, told)
        losses, matches = self.criterion.losses_and_matches(outputs, targets, float(len(targets.labels)), allowed)
        if wanted is not None:
            assert self.feature_head is not None
            of_regions = matched_feature_loss(self.feature_head, wanted, outputs, matches)
            losses |= name_layers({"loss_region": of_regions})
        view, other = pooled.chunk(2)
        if self.global_head is not None:
            losses["loss_global"] = self.global_head(view, other)
        losses |= self.prompt.told_share(outputs, matches, told)
        return losses | match_monitors(outputs, targets, matches) | _encoder_monitors(view.detach(), other.detach())

    def predict(self, batch: ViewBatch | CachedViewBatch, generator: Generator | None = None) -> tuple[Outputs, Tensor]:
        """Cross-view decoding in one pass.

        Args:
            batch: as in `forward`.
            generator: as in `forward`.
        Returns:
            Outputs for 2B images: image i is decoded with the queries of its other view, so its boxes lie in view i;
            and the encoded images' mean (`pool_memory`).
        """
        outputs, pooled, _ = self._decode(batch, generator)
        return outputs, pooled

    @torch.no_grad()
    def usage(self, batch: ViewBatch | CachedViewBatch) -> dict[str, float]:
        """See `Pretext`."""
        allowed = self.prompt.allowed(self._decode(batch)[0])
        return region_usage(lambda kind: self._decode(batch, kind=kind)[0], batch.targets, self.criterion, allowed)

    def transferred(self, detector: Detector) -> Detector:
        """See `Pretext`: the mean region is folded in."""
        return self.prompt.folded(detector)

    def _decode(
        self, batch: ViewBatch | CachedViewBatch, generator: Generator | None = None, kind: Told = "own"
    ) -> tuple[Outputs, Tensor, Tensor | None]:
        """As `predict`, and [2B, Q] bool, True = the query has its region (None: all have)."""
        self._check(batch)
        features = batch.features(self.teacher)
        boxes = batch.boxes
        if self.training and self.box_jitter:
            boxes = jitter_boxes(boxes, self.box_jitter, generator)
        pooled = swap_views(region_features(features, boxes, batch.sizes, self.detector.backbone.strides))
        if kind == "other":
            pooled = pooled.roll(1, 0)
        regions = self.region_projection(self.prompt.features(pooled))
        memory = self.detector.encode_features(features, batch.padding)
        queries = self.detector.queries(len(boxes))
        told = self.prompt.draw(queries, kind)
        references = self.prompt.references(self.detector, queries, (features, batch.padding), pooled, told)
        outputs = self.detector.decode(self.prompt(queries, regions, told, references), memory)
        return outputs, pool_memory(memory), told

    def _wanted_features(self, batch: ViewBatch | CachedViewBatch) -> Tensor:
        """[2BP, F] features of the crops, in the order of the targets.

        The queries of image i are conditioned on regions of its other view.
        """
        return swap_views(batch.crop_features(self.teacher)).flatten(0, 1)

    def _check(self, batch: ViewBatch | CachedViewBatch) -> None:
        regions = batch.boxes.shape[1]
        if regions != self.settings.num_regions:
            raise ValueError(
                f"SiameseDETR: expected {self.settings.num_regions} regions a view, got {regions}; give the data set and the "
                "pretext the same num_regions"
            )


def _encoder_monitors(view: Tensor, other: Tensor) -> dict[str, Tensor]:
    """Cosine similarities of mean memories [B, D]: between views, and between neighbours in the batch.

    The second needs two images.
    """
    monitors = {"monitor_view_cosine": F.cosine_similarity(view, other).mean()}
    if len(view) > 1:
        monitors["monitor_image_cosine"] = F.cosine_similarity(view, view.roll(1, 0)).mean()
    return monitors


def swap_views(x: Tensor) -> Tensor:
    """[2B, ...] of view 1 then view 2 -> view 2 then view 1."""
    return torch.cat(x.chunk(2)[::-1])
