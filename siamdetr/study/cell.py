"""The cells of a study: one run or measurement each, with a name that stays the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["pretrain", "finetune", "agnostic", "cost", "qualitative"]
SCRATCH = "scratch"


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        kind: pretrain; finetune; agnostic: score a pretrained detector without finetuning, as one class; cost: time and
            memory of pretraining steps; qualitative: pictures of a pretrained detector.
        init: the pretext, or "scratch".
        seed: of the run; pretraining has seed 0 and is shared by the seeds that start from it.
        fraction: finetune: of the labelled images.
        freeze: finetune: "body" trains the class and box heads only.
        variation: of the pretraining's settings: (dotted key, value) pairs.
    """

    kind: Kind
    init: str
    seed: int = 0
    fraction: float = 1.0
    freeze: Literal["none", "body"] = "none"
    variation: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """The name of its folder."""
        parts = [self.kind if self.freeze == "none" else "heads", self.init]
        parts += [f"{name.rpartition('.')[2]}={value}" for name, value in self.variation]
        if self.kind == "finetune":
            parts += [f"{100 * self.fraction:g}pct", f"seed{self.seed}"]
        return "-".join(parts)

    @property
    def source(self) -> Cell | None:
        """The pretraining cell that it starts from; None: it needs none."""
        if self.init == SCRATCH or self.kind in ("pretrain", "cost"):
            return None
        return Cell("pretrain", self.init, variation=self.variation)

    @property
    def what(self) -> str:
        """The varied settings in words, such as "view_iou=0.7"; "" without variation."""
        return ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in self.variation)
