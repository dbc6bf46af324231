"""Deformable attention: four forms of one sampling, their gradients, and maps of sampling points."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from helpers.paths import TESTS
from torch import Tensor

from siamdetr.models.attention import record_attention
from siamdetr.models.deformable import bags
from siamdetr.models.deformable.attention import DeformableAttention, describe_levels, place_on_levels, splat
from siamdetr.models.deformable.sampling import Sampling, Shapes, sample_points, sample_reference

LEVELS: Shapes = ((5, 7), (3, 4), (2, 2), (1, 1), (1, 3))
HAS_TRITON = importlib.util.find_spec("triton") is not None
CASES = [  # batch, queries, heads, channels, levels, points
    (1, 7, 3, 5, 1, 3),
    (2, 4, 1, 8, 2, 1),
    (3, 6, 5, 4, 3, 2),
    (4, 3, 8, 2, 4, 4),
    (2, 9, 6, 3, 5, 4),
]
needs_gpu = pytest.mark.skipif(
    not (HAS_TRITON and torch.cuda.is_available()), reason="the kernel needs a CUDA device and Triton"
)
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


def make(case: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, ...]:
    """Values, points (a third of them outside the map) and weights."""
    batch, queries, heads, channels, levels, num_points = case
    generator = torch.Generator().manual_seed(sum(case))
    cells = sum(h * w for h, w in LEVELS[:levels])
    values = torch.randn(batch, cells, heads, channels, generator=generator, dtype=dtype)
    points = torch.rand(batch, queries, heads, levels, num_points, 2, generator=generator, dtype=dtype) * 1.6 - 0.3
    weights = torch.rand(batch, queries, heads, levels, num_points, generator=generator, dtype=dtype)
    return tuple(x.to(device).requires_grad_() for x in (values, points, weights))


def result_and_gradients(form: Sampling, tensors: tuple[Tensor, ...], levels: int) -> list[Tensor]:
    out = sample_points(tensors[0], LEVELS[:levels], *tensors[1:], form=form)
    upstream = torch.arange(out.numel(), device=out.device).sin().view_as(out).to(out.dtype)
    return [out, *torch.autograd.grad(out, tensors, upstream)]


def by_hand(values: Tensor, shapes: Shapes, points: Tensor, weights: Tensor) -> Tensor:
    """Loops over everything: the sum over levels and points of weight x bilinear value."""
    batch, _, heads, channels = values.shape
    out = values.new_zeros(batch, points.shape[1], heads, channels)
    for b in range(batch):
        for q in range(points.shape[1]):
            for m in range(heads):
                start = 0
                for level, (height, width) in enumerate(shapes):
                    for p in range(points.shape[4]):
                        x = float(points[b, q, m, level, p, 0]) * width - 0.5
                        y = float(points[b, q, m, level, p, 1]) * height - 0.5
                        for row in range(height):
                            for column in range(width):
                                share = max(0.0, 1 - abs(row - y)) * max(0.0, 1 - abs(column - x))
                                value = values[b, start + row * width + column, m]
                                out[b, q, m] += weights[b, q, m, level, p] * share * value
                    start += height * width
    return out.flatten(2)


def test_reference_is_the_definition() -> None:
    case = (2, 3, 3, 2, 3, 2)
    values, points, weights = (x.detach() for x in make(case))
    out = sample_reference(values, LEVELS[:3], points, weights)
    torch.testing.assert_close(out, by_hand(values, LEVELS[:3], points, weights), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["reference", "bags", "gather"])
@pytest.mark.parametrize("case", CASES[:2])
def test_gradients_are_right_in_float64(form: Sampling, case: tuple[int, ...]) -> None:
    levels = case[4]
    assert torch.autograd.gradcheck(
        lambda v, p, w: sample_points(v, LEVELS[:levels], p, w, form=form), make(case, torch.float64)
    )


@pytest.mark.parametrize("case", CASES[:2])
def test_samples_taken_again_give_the_same_gradients(case: tuple[int, ...]) -> None:
    levels = case[4]
    assert torch.autograd.gradcheck(
        lambda v, p, w: sample_reference(v, LEVELS[:levels], p, w, resample=True), make(case, torch.float64)
    )


@pytest.mark.parametrize("form", ["auto", "bags", "gather"])
@pytest.mark.parametrize("case", CASES)
def test_forms_agree_on_the_cpu(form: Sampling, case: tuple[int, ...]) -> None:
    tensors = make(case)
    expected = result_and_gradients("reference", tensors, case[4])
    for got, want in zip(result_and_gradients(form, tensors, case[4]), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["reference", "bags", "gather"])
def test_points_in_half_precision_values_keep_their_place(form: Sampling) -> None:
    values, points, weights = make(CASES[3])
    exact = sample_points(values.bfloat16().float(), LEVELS[:4], points, weights)
    with torch.autocast("cpu", torch.bfloat16):
        half = sample_points(values.bfloat16(), LEVELS[:4], points, weights, form=form)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("form", ["reference", "bags", "gather"])
def test_points_far_outside_see_nothing(form: Sampling) -> None:
    values, points, weights = make(CASES[0])
    for far in (1e9, -1e9, 2.0):
        outside = torch.full_like(points, far).detach().requires_grad_()
        out = sample_points(values, LEVELS[:1], outside, weights, form=form)
        assert out.eq(0).all()
        if form == "bags":
            assert all(found.eq(0).all() for found in torch.autograd.grad(out.sum(), (values, outside, weights)))


@pytest.mark.parametrize("form", ["reference", "bags"])
def test_a_point_that_is_no_number_shows_in_the_output(form: Sampling) -> None:
    values, points, weights = make(CASES[0])
    out = sample_points(values, LEVELS[:1], torch.full_like(points, float("nan")), weights, form=form)
    assert out.isnan().all()


@pytest.mark.parametrize("threads", [1, 3])
def test_bags_in_many_tiles_and_groups_are_the_reference(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bags, "_TILE_POINTS", 40)
    monkeypatch.setattr(bags, "_ENTRIES_PER_ROW", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        tensors = make((3, 61, 2, 8, 2, 3))
        expected = result_and_gradients("reference", tensors, 2)
        for got, want in zip(result_and_gradients("bags", tensors, 2), expected, strict=True):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    finally:
        torch.set_num_threads(before)


@needs_gpu
@pytest.mark.parametrize("case", CASES)
def test_kernel_agrees_on_the_gpu(case: tuple[int, ...]) -> None:
    tensors = make(case, device="cuda")
    expected = result_and_gradients("reference", tensors, case[4])
    for got, want in zip(result_and_gradients("kernel", tensors, case[4]), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@needs_gpu
def test_kernel_in_bfloat16_and_compiled_on_the_gpu() -> None:
    values, points, weights = make(CASES[3], device="cuda")
    half = (values.detach().bfloat16().requires_grad_(), points, weights)
    expected = result_and_gradients("reference", (half[0].detach().float().requires_grad_(), points, weights), 4)
    for got, want in zip(result_and_gradients("kernel", half, 4), expected, strict=True):
        torch.testing.assert_close(got.float(), want, atol=0.02, rtol=0.02)
    compiled = torch.compile(lambda v, p, w: sample_points(v, LEVELS[:4], p, w, form="kernel"), fullgraph=True)
    torch.testing.assert_close(compiled(*half), sample_points(half[0], LEVELS[:4], *half[1:], form="kernel"))


INTERPRETED = """
import torch
from models.test_deformable_attention import LEVELS, make, result_and_gradients, sample_points
from siamdetr.models.deformable.triton_kernel import deformable_sample, deformable_sample_backward
for case in [(1, 5, 3, 5, 1, 3), (2, 3, 2, 4, 5, 2)]:
    tensors = make(case)
    pairs = zip(result_and_gradients("kernel", tensors, case[4]), result_and_gradients("reference", tensors, case[4]))
    for got, want in pairs:
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
values, points, weights = make((1, 3, 2, 4, 1, 2))
arguments = (values, [5, 7], points, weights)
torch.library.opcheck(deformable_sample, arguments)
half = sample_points(values.bfloat16(), LEVELS[:1], points, weights, form="kernel")
exact = sample_points(values.bfloat16().float(), LEVELS[:1], points, weights, form="reference")
torch.testing.assert_close(half.float(), exact, atol=0.02, rtol=0.01)
print("agreed")
"""


@needs_triton
def test_kernel_agrees_in_tritons_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        cwd=TESTS,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "agreed" in done.stdout


def test_wrong_shapes_are_named() -> None:
    values, points, weights = make(CASES[1])
    with pytest.raises(ValueError, match=r"levels \[\(5, 7\), \(9, 9\)\] have 116 cells, got values of 47"):
        sample_points(values, ((5, 7), (9, 9)), points, weights)
    with pytest.raises(ValueError, match=r"expected points \[B, Q, heads, 1, P, 2\]"):
        sample_points(values, LEVELS[:1], points, weights)
    with pytest.raises(ValueError, match="divisible by 3 heads, got 8"):
        DeformableAttention(8, 3, levels=1, points=1)


def test_valid_parts_are_measured_on_each_level() -> None:
    padding = torch.zeros(2, 35, dtype=torch.bool)
    padding[1] = True
    padding[1].view(5, 7)[:3, :4] = False
    levels = describe_levels(LEVELS[:1], padding, device=torch.device("cpu"))
    assert levels.valid is not None
    torch.testing.assert_close(levels.valid[:, 0], torch.tensor([[1.0, 1.0], [4 / 7, 3 / 5]]))
    boxes = place_on_levels(torch.ones(2, 1, 4), levels)
    torch.testing.assert_close(boxes[1, 0, 0], torch.tensor([4 / 7, 3 / 5, 4 / 7, 3 / 5]))


def test_splat_of_one_point_by_hand() -> None:
    """A point of weight .75 at x = 1.75, y = 1.0 (cell corners) on a 2 x 3 grid.

    Cell centres are at .5, 1.5 and 2.5.
    """
    points = torch.tensor([1.75 / 3, 1.0 / 2, 5.0, 0.5]).view(1, 1, 1, 1, 2, 2)
    weights = torch.tensor([0.75, 0.25]).view(1, 1, 1, 1, 2)
    picture = splat(points, weights, (2, 3))
    expected = 0.75 * torch.tensor([[0, 0.375, 0.125], [0, 0.375, 0.125]])
    torch.testing.assert_close(picture[0, 0, 0], expected)  # the second point lies outside


def test_recorded_attention_sums_to_the_weight_inside() -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(12, 3, levels=2, points=2, observable=True)
    levels = describe_levels(LEVELS[:2], None, device=torch.device("cpu"))
    references = place_on_levels(torch.full((2, 4, 2), 0.5), levels)
    with record_attention(attention) as maps, torch.no_grad():
        attention.offsets.bias.mul_(0.2)
        attention(torch.randn(2, 4, 12), references, torch.randn(2, 47, 12), None, levels=levels)
    assert maps[0].shape == (2, 3, 4, 5, 7)
    torch.testing.assert_close(maps[0].sum((-2, -1)), torch.ones(2, 3, 4))
