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


DAB_LOSSES = {"cost_class": 2.0, "weight_class": 1.0, "giou_eps": 1e-6}  # of the official DAB and DN code
