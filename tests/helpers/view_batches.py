"""Selections of view batches."""

from __future__ import annotations

import torch

from siamdetr.pretext.batches import ViewBatch


def chosen(batch: ViewBatch, samples: list[int]) -> ViewBatch:
    pairs = torch.tensor([*samples, *(sample + len(batch.images) // 2 for sample in samples)])
    return ViewBatch(*(getattr(batch, name)[pairs] for name in ("images", "padding", "boxes", "sizes", "crops")))
