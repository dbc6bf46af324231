"""UP-DETR (Dai et al. 2021, arXiv:2011.09094): detect in an image the patches cut from it.

Every query is conditioned on the frozen backbone's feature of one patch (§3.1).
Queries of one patch attend to each other only (§3.2, eq. 4).
A share of the queries has no patch, so that the detector also learns to detect without one.
A matched query predicts its box, the class "object" and the patch's feature (eq. 3).

Ours: the groups are right for any number of patches (the official mask has empty rows where there are more patches than
queries per patch); with several feature levels a patch's features of all levels are concatenated, as in Siamese DETR.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from siamdetr.models.criterion.layer_losses import layer_weights, name_layers
from siamdetr.models.detector import Detector, Outputs
from siamdetr.models.heads import MLP
from siamdetr.pretext.batches import RegionBatch
from siamdetr.pretext.common import (
    Pretext,
    check_detector,
    crop_features,
    crops_at_once,
    match_monitors,
    matched_feature_loss,
)
from siamdetr.pretext.prompt import RegionPrompt, Told, check_start, group_mask, region_usage
from siamdetr.settings.pretext import UPDETRSettings


class UPDETR(Pretext):
    """The pretext; the frozen backbone computes the features of the patches.

    Args:
        detector: with the class head of pretraining (`pretext_settings`).
        settings: patches, mask ratio, loss weights. With `weight_feature` 0 there is neither the reconstruction nor its
            head.
    Raises:
        ValueError: another class head, or queries that do not divide among the patches.

    Attributes: `detector`; `region_projection` (patch feature to query), `feature_head` (query to patch feature).
    """

    prompts: ClassVar[bool] = True

    def __init__(self, detector: Detector, settings: UPDETRSettings) -> None:
        check_detector(detector.settings, settings.num_regions, where="UPDETR")
        check_start(settings, detector, where="UPDETR")
        super().__init__(detector, settings.losses)
        self.settings = settings
        dim, channels = detector.settings.dim, sum(detector.backbone.channels)
        self.region_projection = nn.Linear(channels, detector.region_width)
        self.prompt = RegionPrompt(settings, detector.region_width)
        self.feature_head = MLP(dim, dim, channels, num_layers=2) if settings.weight_feature else None

    @property
    def loss_weights(self) -> dict[str, float]:
        """See `Pretext`."""
        weights = super().loss_weights
        if self.feature_head is not None:
            weights |= layer_weights({"loss_feature": self.settings.weight_feature}, self.criterion.num_layers)
        return weights

    def forward(self, batch: RegionBatch, keep: Tensor | None = None) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            batch: normalised float images, `num_regions` patches each.
            keep: [B, Q] bool, True = the query gets its patch; None: in training drawn with probability 1 -
                `mask_ratio`, else all.
        Returns:
            Scalars. Losses, for every decoder layer (aux: suffix `_0`, ...): `loss_class`, `loss_bbox`, `loss_giou`,
            `loss_feature`. Detached: the criterion's `class_error`, `cardinality_error`; `monitor_query_std`,
            `monitor_matched_iou` (see `match_monitors`), `monitor_told_share` (`RegionPrompt.told_share`).
        Raises:
            ValueError: an image has another number of patches.
            FloatingPointError: a prediction is not finite.
        """
        outputs, patches, told = self._decode(batch, keep)
        allowed = self.prompt.allowed(outputs, told)
        losses, matches = self.criterion.losses_and_matches(outputs, batch.targets, allowed=allowed)
        if self.feature_head is not None:
            of_patches = matched_feature_loss(self.feature_head, patches, outputs, matches)
            losses |= name_layers({"loss_feature": of_patches})
        losses |= self.prompt.told_share(outputs, matches, told)
        return losses | match_monitors(outputs, batch.targets, matches)

    def predict(self, batch: RegionBatch, keep: Tensor | None = None) -> tuple[Outputs, Tensor]:
        """Decode the images with queries conditioned on their patches.

        Args:
            batch: as in `forward`.
            keep: as in `forward`.
        Returns:
            Outputs for the B images, and [M, F] features of the patches in the order of the targets.
        """
        outputs, patches, _ = self._decode(batch, keep)
        return outputs, patches

    @torch.no_grad()
    def usage(self, batch: RegionBatch) -> dict[str, float]:
        """See `Pretext`."""
        allowed = self.prompt.allowed(self._decode(batch)[0])
        return region_usage(lambda kind: self._decode(batch, kind=kind)[0], batch.targets, self.criterion, allowed)

    def transferred(self, detector: Detector) -> Detector:
        """See `Pretext`: the mean patch is folded in."""
        return self.prompt.folded(detector)

    def _decode(
        self, batch: RegionBatch, keep: Tensor | None = None, kind: Told = "own"
    ) -> tuple[Outputs, Tensor, Tensor | None]:
        """As `predict`, and [B, Q] bool, True = the query has its patch (None: all have)."""
        self._check(batch)
        patches = crop_features(self.teacher, batch.crops, crops_at_once(batch.images, batch.crops))
        images, regions = len(batch.images), self.settings.num_regions
        shown = patches.view(images, regions, -1)
        if kind == "other":
            shown = shown.roll(1, 0)
        projected = self.region_projection(self.prompt.features(shown))
        features = self.teacher(batch.images)
        queries = self.detector.queries(images)
        told = self.prompt.draw(queries, kind) if keep is None else keep
        references = self.prompt.references(self.detector, queries, (features, batch.padding), shown, told)
        mask = group_mask(queries.content.shape[1], regions, patches.device)
        queries = dataclasses.replace(self.prompt(queries, projected, told, references), attention_mask=mask)
        memory = self.detector.encode_features(features, batch.padding)
        return self.detector.decode(queries, memory), patches, told

    def _check(self, batch: RegionBatch) -> None:
        other = [count for count in batch.targets.counts if count != self.settings.num_regions]
        if other:
            raise ValueError(
                f"UPDETR: expected {self.settings.num_regions} patches an image, got {other[0]}; give the data set and the "
                "pretext the same num_regions"
            )
