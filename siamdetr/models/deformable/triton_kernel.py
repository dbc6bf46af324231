"""Sampling of deformable attention as a Triton kernel forward and one backward: a PyTorch operator.

A program takes a tile of queries of one image and head, and walks over levels, points and the four cells around each
point; it keeps sums in float32 and stores nothing but the result. The backward pass looks the values up again. The
gradient of the values is added up with atomics, hence differs in its last bits from run to run, as that of
`grid_sample` on CUDA.

Ours: levels' sizes are plain arguments of the kernel (up to five levels), so that a new image size neither compiles
anew nor copies to the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from siamdetr.models.deformable.sampling import MAX_KERNEL_LEVELS as MAX_LEVELS

_SIZES = [f"{axis}{level}" for level in range(MAX_LEVELS) for axis in "hw"]
_TILE = 2048  # about so many numbers (queries x channels) a program holds at once


@triton.jit
def _corner(row, column, height, width, stride, channel, valid):  # type: ignore[no-untyped-def]
    """Which cells are inside the map [TILE], and where their channels stand [TILE, WIDTH]."""
    inside = valid & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    offset = (row * width + column)[:, None] * stride + channel[None, :]
    return inside, offset


@triton.jit(do_not_specialize=["num_queries", "num_cells", *_SIZES])  # type: ignore[untyped-decorator]
def _forward_kernel(  # type: ignore[no-untyped-def]
    values, points, weights, out, num_queries, num_cells, h0, w0, h1, w1, h2, w2, h3, w3, h4, w4,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    heights, widths = (h0, h1, h2, h3, h4), (w0, w1, w2, w3, w4)
    query = tl.program_id(0) * TILE + tl.arange(0, TILE)
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, WIDTH)
    valid = query < num_queries
    wanted = channel < CHANNELS
    cell_stride = HEADS * CHANNELS
    own = (image * num_queries + query) * HEADS + head  # row of points, weights, out
    level_values = values + image * num_cells * cell_stride + head * CHANNELS
    total = tl.zeros([TILE, WIDTH], dtype=tl.float32)
    for level in tl.static_range(LEVELS):
        height, width = heights[level], widths[level]
        for point in range(POINTS):
            at = own * (LEVELS * POINTS) + level * POINTS + point
            x = tl.load(points + 2 * at, mask=valid, other=-2.0).to(tl.float32) * width - 0.5
            y = tl.load(points + 2 * at + 1, mask=valid, other=-2.0).to(tl.float32) * height - 0.5
            weight = tl.load(weights + at, mask=valid, other=0.0).to(tl.float32)
            near = valid & (x > -1) & (y > -1) & (x < width) & (y < height)
            x, y = tl.where(near, x, 0.0), tl.where(near, y, 0.0)
            left, top = tl.floor(x), tl.floor(y)
            fx, fy = x - left, y - top
            column, row = left.to(tl.int32), top.to(tl.int32)
            for corner in tl.static_range(4):
                r, c = row + corner // 2, column + corner % 2
                share_y = fy if corner // 2 == 1 else 1 - fy
                share_x = fx if corner % 2 == 1 else 1 - fx
                inside, offset = _corner(r, c, height, width, cell_stride, channel, near)
                value = tl.load(level_values + offset, mask=inside[:, None] & wanted[None, :], other=0.0)
                total += (share_y * share_x * weight)[:, None] * value.to(tl.float32)
        level_values += height * width * cell_stride
    place = out + own[:, None] * CHANNELS + channel[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=valid[:, None] & wanted[None, :])


@triton.jit(do_not_specialize=["num_queries", "num_cells", *_SIZES])  # type: ignore[untyped-decorator]
def _backward_kernel(  # type: ignore[no-untyped-def]
    gradient, values, points, weights, grad_values, grad_points, grad_weights,
    num_queries, num_cells, h0, w0, h1, w1, h2, w2, h3, w3, h4, w4,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    heights, widths = (h0, h1, h2, h3, h4), (w0, w1, w2, w3, w4)
    query = tl.program_id(0) * TILE + tl.arange(0, TILE)
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, WIDTH)
    valid = query < num_queries
    wanted = channel < CHANNELS
    cell_stride = HEADS * CHANNELS
    own = (image * num_queries + query) * HEADS + head
    level_start = image * num_cells * cell_stride + head * CHANNELS
    upstream = tl.load(
        gradient + own[:, None] * CHANNELS + channel[None, :], mask=valid[:, None] & wanted[None, :], other=0.0
    ).to(tl.float32)
    for level in tl.static_range(LEVELS):
        height, width = heights[level], widths[level]
        for point in range(POINTS):
            at = own * (LEVELS * POINTS) + level * POINTS + point
            x = tl.load(points + 2 * at, mask=valid, other=-2.0).to(tl.float32) * width - 0.5
            y = tl.load(points + 2 * at + 1, mask=valid, other=-2.0).to(tl.float32) * height - 0.5
            weight = tl.load(weights + at, mask=valid, other=0.0).to(tl.float32)
            near = valid & (x > -1) & (y > -1) & (x < width) & (y < height)
            x, y = tl.where(near, x, 0.0), tl.where(near, y, 0.0)
            left, top = tl.floor(x), tl.floor(y)
            fx, fy = x - left, y - top
            column, row = left.to(tl.int32), top.to(tl.int32)
            sample = tl.zeros([TILE], dtype=tl.float32)  # upstream . value at the point
            slope_x = tl.zeros([TILE], dtype=tl.float32)
            slope_y = tl.zeros([TILE], dtype=tl.float32)
            for corner in tl.static_range(4):
                r, c = row + corner // 2, column + corner % 2
                share_y = fy if corner // 2 == 1 else 1 - fy
                share_x = fx if corner % 2 == 1 else 1 - fx
                sign_y = 1 if corner // 2 == 1 else -1
                sign_x = 1 if corner % 2 == 1 else -1
                inside, offset = _corner(r, c, height, width, cell_stride, channel, near)
                mask = inside[:, None] & wanted[None, :]
                value = tl.load(values + level_start + offset, mask=mask, other=0.0).to(tl.float32)
                tl.atomic_add(
                    grad_values + level_start + offset, (share_y * share_x * weight)[:, None] * upstream,
                    mask=mask, sem="relaxed",
                )  # fmt: skip
                product = tl.sum(value * upstream, axis=1)
                sample += share_y * share_x * product
                slope_x += sign_x * share_y * product
                slope_y += sign_y * share_x * product
            tl.store(grad_weights + at, sample, mask=valid)
            tl.store(grad_points + 2 * at, slope_x * weight * width, mask=valid)
            tl.store(grad_points + 2 * at + 1, slope_y * weight * height, mask=valid)
        level_start += height * width * cell_stride


@torch.library.custom_op("siamdetr::deformable_sample", mutates_args=())
def deformable_sample(values: Tensor, sizes: Sequence[int], points: Tensor, weights: Tensor) -> Tensor:
    """`siamdetr.models.deformable.sampling.sample_points` for contiguous tensors.

    Args:
        values: [B, N, M, d] of any floating type; sums are in float32.
        sizes: height and width of each of 1 to 5 levels: h0, w0, h1, w1, ...
        points: [B, Q, M, L, P, 2] float32, (x, y) fractions.
        weights: [B, Q, M, L, P] float32.
    Returns:
        [B, Q, M, d] in the type of `values`.
    Raises:
        ValueError: more than 5 levels, or a tensor that is not contiguous.
    """
    _check(values, sizes, points, weights)
    batch, queries, heads = points.shape[:3]
    out = values.new_empty((batch, queries, heads, values.shape[-1]))
    if out.numel():
        tile, width = _tile(values)
        grid = (triton.cdiv(queries, tile), heads, batch)
        with _device_of(values):
            _forward_kernel[grid](
                values, points, weights, out, queries, values.shape[1], *_padded(sizes),
                HEADS=heads, CHANNELS=values.shape[-1], LEVELS=points.shape[3], POINTS=points.shape[4],
                TILE=tile, WIDTH=width,
            )  # fmt: skip
    return out


@torch.library.custom_op("siamdetr::deformable_sample_backward", mutates_args=())
def deformable_sample_backward(
    gradient: Tensor, values: Tensor, sizes: Sequence[int], points: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of values, points and weights from that of the result, [B, Q, M, d] contiguous."""
    batch, queries, heads = points.shape[:3]
    grad_values = torch.zeros_like(values, dtype=torch.float32)
    grad_points, grad_weights = torch.zeros_like(points), torch.zeros_like(weights)
    if gradient.numel():
        tile, width = _tile(values)
        grid = (triton.cdiv(queries, tile), heads, batch)
        with _device_of(values):
            _backward_kernel[grid](
                gradient, values, points, weights, grad_values, grad_points, grad_weights,
                queries, values.shape[1], *_padded(sizes),
                HEADS=heads, CHANNELS=values.shape[-1], LEVELS=points.shape[3], POINTS=points.shape[4],
                TILE=tile, WIDTH=width,
            )  # fmt: skip
    return grad_values.to(values.dtype), grad_points, grad_weights


@deformable_sample.register_fake
def _(values: Tensor, sizes: Sequence[int], points: Tensor, weights: Tensor) -> Tensor:
    return values.new_empty((*points.shape[:3], values.shape[-1]))


@deformable_sample_backward.register_fake
def _(
    gradient: Tensor, values: Tensor, sizes: Sequence[int], points: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(values), torch.empty_like(points), torch.empty_like(weights)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: Tensor) -> None:
    values, sizes, points, weights = inputs
    ctx.save_for_backward(values, points, weights)  # type: ignore[arg-type]
    ctx.sizes = sizes  # type: ignore[attr-defined]


def _differentiate(
    ctx: torch.autograd.function.FunctionCtx, gradient: Tensor
) -> tuple[Tensor | None, None, Tensor | None, Tensor | None]:
    values, points, weights = ctx.saved_tensors  # type: ignore[attr-defined]
    grad_values, grad_points, grad_weights = deformable_sample_backward(
        gradient.contiguous(), values, ctx.sizes, points, weights  # type: ignore[attr-defined]
    )  # fmt: skip
    return grad_values, None, grad_points, grad_weights


deformable_sample.register_autograd(_differentiate, setup_context=_keep)


def _tile(values: Tensor) -> tuple[int, int]:
    """Queries of a program, and channels rounded up to a power of two."""
    width = triton.next_power_of_2(values.shape[-1])
    return max(1, _TILE // width), width


def _padded(sizes: Sequence[int]) -> list[int]:
    return [*sizes, *[1] * (2 * MAX_LEVELS - len(sizes))]


def _device_of(values: Tensor) -> torch.cuda.device:
    """Triton launches on the current device; index -1 (not CUDA) changes nothing."""
    return torch.cuda.device(values.device.index if values.is_cuda else -1)


def _check(values: Tensor, sizes: Sequence[int], points: Tensor, weights: Tensor) -> None:
    if not 2 <= len(sizes) <= 2 * MAX_LEVELS or len(sizes) != 2 * points.shape[3]:
        raise ValueError(
            f"deformable_sample: expected height and width of 1 to {MAX_LEVELS} levels, got {len(sizes)} numbers for "
            f"{points.shape[3]} levels; use sample_points(form='reference')"
        )
    if not (values.is_contiguous() and points.is_contiguous() and weights.is_contiguous()):
        raise ValueError("deformable_sample: expected contiguous tensors; call .contiguous(), or use sample_points")
