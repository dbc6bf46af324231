"""Hungarian matching of predictions to targets in one transfer (DETR, arXiv:2005.12872, §3.1).

Ours: the costs of every decoder layer and image are computed together, and only the entries that the assignment needs
(the queries of an image against the boxes of the same image) travel to the host, packed into one tensor. The official
code makes one transfer per layer, of the whole batch against the boxes of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from siamdetr.boxes import cxcywh_to_xyxy, elementwise_giou
from siamdetr.settings.detector import Classifier, LossSettings
from siamdetr.structures.targets import Targets

BLOCKED = 1e4  # cost of a pair that is not allowed; far above what costs of allowed pairs can sum to
FOCAL_LOG_EPS = 1e-8  # inside the logarithms of the focal cost, as in the official matchers


@dataclass(frozen=True)
class Matches:
    """The matched queries and targets of every layer: four index tensors of length K.

    Ordered by layer, then image, then query. Every layer has as many matches as any other, so `query.view(L, -1)` is a
    table of layers.

    Attributes:
        layer: [K] int64, 0..L-1.
        image: [K] int64, 0..B-1.
        query: [K] int64, 0..Q-1.
        target: [K] int64, index into `Targets.boxes` (of the whole batch).
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor


@torch.no_grad()
def match(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    settings: LossSettings,
    classifier: Classifier,
    *,
    allowed: Tensor | None = None,
) -> Matches:
    """Assign every target box to one query, in every layer on its own, at the least total cost.

    Args:
        logits: [L, B, Q, C] class logits; with `softmax` the last class is "no object".
        boxes: [L, B, Q, 4] predicted (cx, cy, w, h), fractions.
        targets: the boxes of the B images, on the device of the predictions.
        settings: the three costs and `matcher_alpha`.
        classifier: what the logits mean.
        allowed: [M, Q] bool, True = the query may be matched with the box; None: all may. It is obeyed wherever such an
            assignment exists.
    Returns:
        min(Q, boxes) matches of each image in each layer, on the device of `logits`.
    Raises:
        ValueError: the targets are those of another number of images.
        FloatingPointError: a cost is not finite; names the layer and the image.

    One device→host transfer (none without boxes), and no other wait for the device.
    """
    images = logits.shape[1]
    if len(targets.counts) != images:
        raise ValueError(
            f"match: {images} images were predicted, targets have {len(targets.counts)}; give one count an image"
        )
    device = logits.device
    if sum(targets.counts) == 0:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return Matches(none, none, none, none)
    with torch.autocast(device.type, enabled=False):
        costs = _own_costs(logits.float(), boxes.float(), targets, settings, classifier)
        if allowed is not None:
            costs = costs + BLOCKED * ~allowed
    table = _assign(costs.cpu().numpy(), targets.counts)
    layer, image, query, target = _to_device(table, device).unbind()
    return Matches(layer, image, query, target)


def _own_costs(
    logits: Tensor, boxes: Tensor, targets: Targets, settings: LossSettings, classifier: Classifier
) -> Tensor:
    """[L, M, Q]: cost of each box against the queries of its own image."""
    image = _to_device(np.repeat(np.arange(len(targets.counts)), targets.counts), logits.device)  # [M]
    own_boxes = boxes[:, image]  # [L, M, Q, 4]
    wanted = targets.boxes.float()[None, :, None]  # [1, M, 1, 4]
    cost_class = _class_costs(logits, image, targets.labels, settings, classifier)
    cost_bbox = (own_boxes - wanted).abs().sum(-1)
    cost_giou = -elementwise_giou(cxcywh_to_xyxy(own_boxes), cxcywh_to_xyxy(wanted), eps=settings.giou_eps)
    return settings.cost_class * cost_class + settings.cost_bbox * cost_bbox + settings.cost_giou * cost_giou


def _class_costs(
    logits: Tensor, image: Tensor, labels: Tensor, settings: LossSettings, classifier: Classifier
) -> Tensor:
    """[L, M, Q]: minus the probability of the box's label, or the difference of its two focal terms."""
    if classifier == "softmax":
        probability = logits.softmax(-1)
        return -probability.transpose(2, 3)[:, image, labels]
    probability = logits.transpose(2, 3)[:, image, labels].sigmoid()
    alpha = settings.matcher_alpha
    gamma = settings.focal_gamma if settings.matcher_gamma is None else settings.matcher_gamma
    negative = (1 - alpha) * probability**gamma * -torch.log(1 - probability + FOCAL_LOG_EPS)
    positive = alpha * (1 - probability) ** gamma * -torch.log(probability + FOCAL_LOG_EPS)
    return positive - negative


def _assign(costs: NDArray[np.float32], counts: tuple[int, ...]) -> NDArray[np.int64]:
    """[4, K] rows (layer, image, query, target) from costs [L, M, Q]."""
    _refuse_non_finite(costs, counts)
    starts = np.concatenate([[0], np.cumsum(counts)])
    columns = []
    for layer in range(costs.shape[0]):
        for image, count in enumerate(counts):
            start = int(starts[image])
            query, target = linear_sum_assignment(costs[layer, start : start + count].T)
            columns.append(np.stack([np.full_like(query, layer), np.full_like(query, image), query, target + start]))
    return np.concatenate(columns, axis=1)


def _refuse_non_finite(costs: NDArray[np.float32], counts: tuple[int, ...]) -> None:
    bad = ~np.isfinite(costs)
    if bad.any():
        layer, target, query = (int(axis[0]) for axis in np.nonzero(bad))
        image = int(np.searchsorted(np.cumsum(counts), target, side="right"))
        raise FloatingPointError(
            f"match: the matching costs of decoder layer {layer} (of {costs.shape[0]}) are not finite: image {image} of the "
            f"batch, query {query}; the predictions hold NaN or infinity: lower the learning rate, clip gradients, or use "
            "precision fp32"
        )


def _to_device(indices: NDArray[np.int64], device: torch.device) -> Tensor:
    """Copy without waiting: page-locked memory may be read while the host continues."""
    tensor = torch.from_numpy(indices)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
