"""Boxes: round trips, bounds of the overlaps, degenerate boxes, and the error text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from siamdetr.boxes import (
    cxcywh_to_xyxy,
    elementwise_giou,
    elementwise_iou,
    inverse_sigmoid,
    pairwise_giou,
    xyxy_to_cxcywh,
)

side = st.floats(0, 1, width=32)
cxcywh = st.lists(st.tuples(side, side, side, side), min_size=1, max_size=5).map(lambda rows: torch.tensor(rows))
few = settings(max_examples=50, deadline=None)


@few
@given(cxcywh)
def test_the_layouts_are_inverse(boxes: Tensor) -> None:
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes, rtol=0, atol=1e-6)


@few
@given(cxcywh, cxcywh)
def test_overlaps_are_bounded_symmetric_and_giou_is_below_iou(a: Tensor, b: Tensor) -> None:
    a, b = cxcywh_to_xyxy(a), cxcywh_to_xyxy(b)
    iou, giou = elementwise_iou(a[:, None], b), pairwise_giou(a, b)
    assert iou.shape == giou.shape == (len(a), len(b))
    assert ((iou >= 0) & (iou <= 1 + 1e-6)).all()
    assert ((giou >= -1 - 1e-6) & (giou <= iou + 1e-5)).all()
    torch.testing.assert_close(giou, pairwise_giou(b, a).T)


@few
@given(cxcywh)
def test_elementwise_giou_is_the_diagonal_of_pairwise(boxes: Tensor) -> None:
    a = cxcywh_to_xyxy(boxes)
    b = a.flip(0)
    torch.testing.assert_close(elementwise_giou(a, b), pairwise_giou(a, b).diagonal())


def test_known_overlaps() -> None:
    a, b = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3], [0, 0, 2, 2], [4, 0, 6, 2]])
    torch.testing.assert_close(elementwise_iou(a, b), torch.tensor([1 / 7, 1.0, 0.0]))
    torch.testing.assert_close(pairwise_giou(a, b), torch.tensor([[1 / 7 - 2 / 9, 1.0, -4 / 12]]))


def test_boxes_without_area_give_zero_and_a_finite_gradient() -> None:
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    giou = pairwise_giou(point, point.detach())
    assert giou.tolist() == [[0.0]]
    giou.sum().backward()
    assert point.grad is not None
    assert torch.isfinite(point.grad).all()


def test_there_may_be_no_boxes_and_leading_axes() -> None:
    assert pairwise_giou(torch.zeros(0, 4), torch.zeros(3, 4)).shape == (0, 3)
    assert pairwise_giou(torch.zeros(2, 5, 4), torch.zeros(2, 3, 4)).shape == (2, 5, 3)


def test_half_precision_is_computed_in_single() -> None:
    boxes = torch.tensor([[0, 0, 300, 300]], dtype=torch.float16)  # the area is beyond float16
    assert pairwise_giou(boxes, boxes).tolist() == [[1.0]]


def test_inverse_sigmoid_is_inverse_and_finite_at_the_ends() -> None:
    x = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    logits = inverse_sigmoid(x)
    torch.testing.assert_close(logits.sigmoid(), x, rtol=0, atol=2e-5)
    assert torch.isfinite(logits).all()


def test_a_wrong_shape_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"pairwise_giou: expected boxes \[\.\.\., 4\], got \[2, 5\]; give four numbers"
    ):
        pairwise_giou(torch.zeros(2, 5), torch.zeros(1, 4))
