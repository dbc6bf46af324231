"""The type of a named recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A recipe: its description, and nested settings for one stage or both."""

    description: str
    pretrain: dict[str, Any] | None = None
    finetune: dict[str, Any] | None = None

    @property
    def stage(self) -> str:
        """The stages it is for, in words."""
        return " and ".join(stage for stage in ("pretrain", "finetune") if getattr(self, stage) is not None)


# Of the official scripts of DINO: about 100 positives and 100 negatives an image; half of a label noise of .5; corners move by up to half
# the size (negatives by up to all of it).
CONTRASTIVE = {"queries": 100, "label_noise": 0.25, "box_noise": 1.0}
# Of the official RT-DETR: varifocal loss.
IOU_AWARE_LOSSES = {"iou_aware": True, "focal_alpha": 0.75, "cost_class": 2.0, "weight_class": 1.0}
DAB_LOSSES = {"cost_class": 2.0, "weight_class": 1.0, "giou_eps": 1e-6}  # of the official DAB and DN code
