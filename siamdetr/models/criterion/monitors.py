"""Monitors without weight or gradient: the number of detections, and the class error of matches."""

from __future__ import annotations

import torch
from torch import Tensor

from siamdetr.models.criterion.matcher import Matches
from siamdetr.structures.targets import Targets


def match_figures(logits: Tensor, targets: Targets, matches: Matches) -> dict[str, Tensor]:
    """[L] each; as in the official code, an argmax that is not the last class counts as a detection.

    This holds for the focal classifier, too.
    """
    layers = logits.shape[0]
    answers = logits.argmax(-1)  # [L, B, Q]
    boxes = (answers != logits.shape[-1] - 1).sum(2)
    counts = torch.stack([torch.full((), count, device=logits.device) for count in targets.counts])
    cardinality = (boxes - counts).abs().float().mean(1)
    right = answers[matches.layer, matches.image, matches.query] == targets.labels[matches.target]
    correct = right.view(layers, -1).sum(1) / max(1, right.numel() // layers)
    return {"class_error": 100 - 100 * correct, "cardinality_error": cardinality}
