"""DETReg (Bar et al. 2022, arXiv:2106.04550): detect proposals, and predict their features.

The queries are the detector's own, without conditioning (§3.1). A matched query predicts its box, the class "object",
and, in the last decoder layer, the frozen backbone's embedding of the region's crop (§3.2).

Ours: the target network is the detector's own frozen backbone (in the official recipe both are SwAV's and neither
trains), always in eval mode (the official projection head has batch statistics of one image's crops); the embedding
loss is divided by the number of boxes of all processes, and is 0 where no image has a region.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siamdetr.errors import SettingsError, WeightFileError
from siamdetr.models.backbone.weight_files import read_weight_file, unwrap_state_dict
from siamdetr.models.criterion.normalisers import boxes_per_process
from siamdetr.models.detector import Detector, Outputs
from siamdetr.models.heads import MLP
from siamdetr.pretext.batches import RegionBatch
from siamdetr.pretext.common import Pretext, crop_features, crops_at_once, match_monitors
from siamdetr.settings.pretext import DETRegSettings
from siamdetr.structures.targets import OBJECT_LABEL, Targets

PROJECTED = 128  # numbers in SwAV's projection
_SWAV = "projection_head."


class DETReg(Pretext):
    """The pretext; the frozen backbone embeds the crops.

    Args:
        detector: with the class head of pretraining (`pretext_settings`).
        settings: regions, embedding, loss weights. With `weight_embedding` 0 there is neither that loss nor its head.
    Raises:
        ValueError: the detector has no class "object", fewer queries than regions, or a backbone without that
            embedding.

    Attributes: `detector`; `embedding_head` (query to embedding); `projection`: SwAV's, where that is the embedding
    (`load_projection` fills it).
    """

    def __init__(self, detector: Detector, settings: DETRegSettings) -> None:
        _check_detector(detector, settings)
        super().__init__(detector, settings.losses)
        self.settings = settings
        dim, width = detector.settings.dim, embedding_width(detector, settings)
        self.embedding_head = MLP(dim, dim, width, num_layers=2) if settings.weight_embedding else None
        projects = settings.weight_embedding and settings.embedding == "projection"
        self.projection = _projection(detector.backbone.num_channels) if projects else None

    @property
    def loss_weights(self) -> dict[str, float]:
        """See `Pretext`."""
        weights = super().loss_weights
        if self.embedding_head is not None:
            weights["loss_embedding"] = self.settings.weight_embedding
        return weights

    def train(self, mode: bool = True) -> Self:
        """See `Pretext`; the projection is always in eval mode, too."""
        super().train(mode)
        if self.projection is not None:
            self.projection.eval()
        return self

    def forward(self, batch: RegionBatch) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            batch: normalised float images; any number of regions an image, also none.
        Returns:
            Scalars. Losses, for every decoder layer (aux: suffix `_0`, ...): `loss_class`, `loss_bbox`, `loss_giou`;
            once: `loss_embedding`. Detached: the criterion's `class_error`, `cardinality_error`; `monitor_query_std`,
                `monitor_matched_iou` (see `match_monitors`).
        Raises:
            FloatingPointError: a prediction is not finite.
        """
        outputs, wanted = self.predict(batch)
        return self.losses(outputs, batch.targets, wanted)

    def predict(self, batch: RegionBatch) -> tuple[Outputs, Tensor | None]:
        """Outputs for B images, and embeddings [M, F] of the regions in target order (None without that loss)."""
        wanted = self._embeddings(batch) if self.embedding_head is not None else None
        memory = self.detector.encode_features(self.teacher(batch.images), batch.padding)
        return self.detector.decode(self.detector.queries(len(batch.images)), memory), wanted

    def losses(self, outputs: Outputs, targets: Targets, wanted: Tensor | None) -> dict[str, Tensor]:
        """As `forward`, from the result of `predict`."""
        losses, matches = self.criterion.losses_and_matches(outputs, targets)
        if self.embedding_head is not None and wanted is not None:
            in_last = slice(len(matches.layer) - len(matches.layer) // len(outputs.hidden), None)
            found = self.embedding_head(outputs.hidden[-1, matches.image[in_last], matches.query[in_last]])  # [M, F]
            distance = (found.float() - wanted[matches.target[in_last]]).abs().sum()
            losses["loss_embedding"] = distance / (wanted.shape[1] * boxes_per_process(targets))
        return losses | match_monitors(outputs, targets, matches)

    def load_weights(self, source: str) -> None:
        """Load SwAV's projection, where it is the embedding.

        Raises:
            SettingsError: `source` is no file.
            WeightFileError: see `load_projection`.
        """
        if self.projection is None:
            return
        if source in ("imagenet", "none"):
            raise SettingsError(
                f"detreg.embedding=projection needs SwAV's own file as backbone_weights, got '{source}'; give "
                "the file, or set detreg.embedding=c3"
            )
        load_projection(self, source)

    def _embeddings(self, batch: RegionBatch) -> Tensor:
        """[M, F] float32, without gradient."""
        if len(batch.crops) == 0:
            return batch.crops.new_zeros(0, embedding_width(self.detector, self.settings))
        at_once = crops_at_once(batch.images, batch.crops)
        if self.settings.embedding == "c3":
            return crop_features(self.teacher.stride8, batch.crops, at_once)
        features = crop_features(self.teacher, batch.crops, at_once)
        if self.projection is None:
            return features
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            return F.normalize(self.projection(features[:, -self.detector.backbone.num_channels :]), dim=-1)


def embedding_width(detector: Detector, settings: DETRegSettings) -> int:
    """The length F of a region's embedding.

    Raises:
        ValueError: the backbone computes no map of stride 8 and the settings ask for it.
    """
    if settings.embedding == "projection":
        return PROJECTED
    if settings.embedding == "last":
        return sum(detector.backbone.channels)
    channels = detector.backbone.stride8_channels
    if channels is None:
        raise ValueError(
            f"DETReg: embedding 'c3' needs a map of stride 8, got backbone '{detector.backbone.name}' with strides "
            f"{list(detector.backbone.strides)}; set embedding=last, or take a ResNet or a detector with several levels"
        )
    return channels


def load_projection(pretext: DETReg, path: str | Path) -> None:
    """Fill the projection from SwAV's file.

    Raises:
        WeightFileError: no readable file, or none with a projection head of this shape.
    """
    assert pretext.projection is not None
    tensors = unwrap_state_dict(read_weight_file(path), str(path))
    found = {name.partition(_SWAV)[2]: value for name, value in tensors.items() if _SWAV in name}
    try:
        pretext.projection.load_state_dict(found)
    except RuntimeError:
        raise WeightFileError(
            f"{path}: expected SwAV's projection head ('{_SWAV}0.weight' and so on) for {pretext.detector.backbone.num_channels} "
            f"channels, got {sorted(found) or 'none'}; give SwAV's own file, or set detreg.embedding=c3"
        ) from None


def _projection(channels: int) -> nn.Sequential:
    """SwAV's projection head (arXiv:2006.09882), frozen."""
    head = nn.Sequential(
        nn.Linear(channels, channels), nn.BatchNorm1d(channels), nn.ReLU(), nn.Linear(channels, PROJECTED)
    )
    return head.eval().requires_grad_(False)


def _check_detector(detector: Detector, settings: DETRegSettings) -> None:
    shape = detector.settings
    if shape.num_classes <= OBJECT_LABEL:
        raise ValueError(
            f"DETReg: expected a class head that knows label {OBJECT_LABEL}, an object, got {shape.num_classes} class; build the "
            "detector from pretext_settings(settings)"
        )
    if settings.num_regions > shape.num_queries:
        raise ValueError(
            f"DETReg: {shape.num_queries} queries cannot answer for {settings.num_regions} regions; choose num_regions at most "
            "num_queries"
        )
