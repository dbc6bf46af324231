"""Remarks of the doctor on intact data: repeated pictures, rare classes, uneven splits."""

from __future__ import annotations

from dataclasses import dataclass

REMARKS: dict[str, tuple[str, str]] = {  # kind: (title, advice)
    "near-leakage": (
        "image much like one of another split",
        "scores on the later split flatter; `siamdetr split` keeps such images together",
    ),
    "near-duplicate": ("image much like another one of its split", "it is seen twice as often"),
    "rare-class": (
        "class a hundred times rarer than the most frequent one",
        "it is learnt late, and its AP is noisy; label more of it, or show it more often (`finetune --set repeat_threshold=0.01`)",
    ),
    "unscored-class": ("class with boxes to learn from, but none to score", "its AP cannot be measured"),
    "split-skew": (
        "split that differs from the training split by more than chance",
        "scores on it tell of other images than those trained on; `siamdetr split` deals them evenly",
    ),
}


@dataclass(frozen=True)
class Remark:
    """One remark.

    Attributes:
        kind: a key of `REMARKS`.
        split: the data set's own name of the split.
        where: file, class or quantity.
        what: the figures of this case.
    """

    kind: str
    split: str
    where: str
    what: str
