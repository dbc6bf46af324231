"""Boxes: conversions, overlaps, and the inverse sigmoid with which DETR detectors refine references.

Two layouts only: `cxcywh` (centre, width, height) inside models and losses, `xyxy` (corners) at the edges and for
overlaps.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Corners of boxes given by centre and size.

    Args:
        boxes: [..., 4] boxes (cx, cy, w, h) in any one unit.
    Returns:
        [..., 4] boxes (x0, y0, x1, y1) in the same unit; x0 <= x1 when w >= 0.
    Raises:
        ValueError: the last axis is not 4.

    Example:
        >>> cxcywh_to_xyxy(torch.tensor([0.5, 0.5, 0.25, 0.5])).tolist()
        [0.375, 0.25, 0.625, 0.75]
    """
    _check(boxes, "cxcywh_to_xyxy")
    centre, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Centre and size of boxes given by corners.

    Args:
        boxes: [..., 4] boxes (x0, y0, x1, y1) in any one unit.
    Returns:
        [..., 4] boxes (cx, cy, w, h) in the same unit.
    Raises:
        ValueError: the last axis is not 4.

    Example:
        >>> xyxy_to_cxcywh(torch.tensor([10.0, 20.0, 30.0, 60.0])).tolist()
        [20.0, 40.0, 20.0, 40.0]
    """
    _check(boxes, "xyxy_to_cxcywh")
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) * 0.5, high - low], dim=-1)


def pairwise_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU of every box in `a` with every box in `b`.

    Args:
        a: [..., N, 4] boxes (x0, y0, x1, y1), x0 <= x1 and y0 <= y1, in any one unit (pixels or fractions).
        b: [..., M, 4] boxes in the same unit; leading axes broadcast with those of `a`.
    Returns:
        [..., N, M] values in [-1, 1]: 1 is identical, below 0 is far apart. N and M may be 0.
    Raises:
        ValueError: `a` or `b` is not [..., 4]. Corner order is not checked here: it would stall the GPU at every
            step, so the data loader checks it once.

    Source: Rezatofighi et al. 2019, arXiv:1902.09630, eq. 3. Ours: two zero-area boxes at one point give 0.
    Half precision and integers are computed in float32.

    Example:
        >>> a, b = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 2.0, 1.0], [2.0, 0.0, 4.0, 2.0]])
        >>> pairwise_giou(a, b).tolist()
        [[0.5, 0.0]]
    """
    return _giou(_floating(a, "pairwise_giou").unsqueeze(-2), _floating(b, "pairwise_giou").unsqueeze(-3))


def elementwise_giou(a: Tensor, b: Tensor, *, eps: float = 0.0) -> Tensor:
    """Generalized IoU of each box in `a` with the box at the same place in `b`.

    Args:
        a: [..., 4] boxes (x0, y0, x1, y1), x0 <= x1 and y0 <= y1, in any one unit.
        b: [..., 4] boxes in the same unit.
        eps: added to both areas that are divided by; the official DAB and DN code has 1e-6.
    Returns:
        [...] values in [-1, 1].
    Raises:
        ValueError: `a` or `b` is not [..., 4].
    """
    return _giou(_floating(a, "elementwise_giou"), _floating(b, "elementwise_giou"), eps)


def elementwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of each box in `a` with the box at the same place in `b`.

    Args:
        a: [..., 4] boxes (x0, y0, x1, y1), x0 <= x1 and y0 <= y1, in any one unit.
        b: [..., 4] boxes in the same unit.
    Returns:
        [...] values in [0, 1].
    Raises:
        ValueError: `a` or `b` is not [..., 4].
    """
    iou, _ = _iou_and_union(_floating(a, "elementwise_iou"), _floating(b, "elementwise_iou"))
    return iou


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of a fraction, finite at 0 and 1: `sigmoid(inverse_sigmoid(x)) = x` for x in [eps, 1 - eps].

    Args:
        x: [...] fractions; values outside [0, 1] count as 0 and 1.
        eps: distance kept from 0 and 1, so that the result lies within ±log(1/eps), 11.5 by default. The official DETR
            family uses 1e-5, DAB-DETR 1e-3.
    Returns:
        [...] logits.
    """
    return torch.log(x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0))


def _giou(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    iou, union = _iou_and_union(a, b, eps)
    low = torch.minimum(a[..., :2], b[..., :2])
    high = torch.maximum(a[..., 2:], b[..., 2:])
    size = (high - low).clamp(min=0)
    hull = size[..., 0] * size[..., 1]
    return iou - (hull - union) / (hull + eps).clamp(min=_least_area(hull))


def _iou_and_union(a: Tensor, b: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    size = (high - low).clamp(min=0)
    intersection = size[..., 0] * size[..., 1]
    union = _area(a) + _area(b) - intersection
    return intersection / (union + eps).clamp(min=_least_area(union)), union


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _least_area(areas: Tensor) -> float:
    """The divisor in place of a zero area.

    Small beside any real box, large enough for a finite gradient.
    """
    return float(torch.finfo(areas.dtype).tiny ** 0.5)


def _floating(boxes: Tensor, where: str) -> Tensor:
    _check(boxes, where)
    return boxes if boxes.dtype in (torch.float32, torch.float64) else boxes.float()


def _check(boxes: Tensor, where: str) -> None:
    if boxes.ndim == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"{where}: expected boxes [..., 4], got {list(boxes.shape)}; give four numbers a box")
