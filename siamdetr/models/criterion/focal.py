"""Focal loss (Lin et al. 2017, arXiv:1708.02002) and varifocal loss (arXiv:2008.13367).

Classes are independent: one sigmoid each.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Focal loss of independent classes, elementwise (arXiv:1708.02002, eq. 5).

    Args:
        logits: [...] class logits.
        targets: [...] 1 for the right class, else 0.
        alpha: weight of positives; negatives have 1 - alpha.
        gamma: focusing exponent, which reduces the weight of easy examples.
    Returns:
        [...] losses >= 0.
    """
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = probability + targets - 2 * probability * targets  # 1 - p of positives, p of negatives
    return (alpha * targets + (1 - alpha) * (1 - targets)) * entropy * wrong**gamma


def varifocal_loss(logits: Tensor, scores: Tensor, positives: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Varifocal loss of independent classes, elementwise (Zhang et al. 2020, arXiv:2008.13367, eq. 2).

    Args:
        logits: [...] class logits.
        scores: [...] IoU that a positive should predict, in [0, 1]; 0 for negatives.
        positives: [...] 1 for the right class, else 0.
        alpha: weight of negatives.
        gamma: focusing exponent, which reduces the weight of easy negatives.
    Returns:
        [...] losses >= 0. Neither the scores nor the weights have a gradient.
    """
    probability = logits.detach().sigmoid()
    weight = alpha * probability**gamma * (1 - positives) + scores.detach()
    return F.binary_cross_entropy_with_logits(logits, scores.detach(), weight=weight, reduction="none")
