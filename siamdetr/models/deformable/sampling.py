"""Weighted sampling of feature maps at points, in four forms.

The inner step of deformable attention (arXiv:2010.04159, eq. 3).

`reference` says in PyTorch what is meant; `kernel` (`triton_kernel`) computes it on CUDA in one pass, `bags` on a
processor; `gather` needs no GridSample, which TensorRT and opset 20 get wrong, and keeps batch, height and width
dynamic when exported. Coordinates are (x, y) fractions of a level's whole map, padding included: 0 is the outer edge of
the first cell, 1 that of the last. Outside the map there are zeros, between cells values are bilinear.

Letters in shapes: B images, N cells of all levels, Q queries, M heads, d channels a head, L levels, P points.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from siamdetr.models.deformable.bags import Shapes as Shapes
from siamdetr.models.deformable.bags import sample_bags

Sampling = Literal["auto", "reference", "kernel", "bags", "gather"]

MAX_KERNEL_LEVELS = 5
_HAS_TRITON = importlib.util.find_spec("triton") is not None


def sample_points(
    values: Tensor, shapes: Shapes, points: Tensor, weights: Tensor, *, form: Sampling = "auto"
) -> Tensor:
    """Weighted sum of the values at some points, per query and head.

    Args:
        values: [B, N, M, d], level after level, each row by row.
        shapes: (height, width) of the L levels; they sum to N.
        points: [B, Q, M, L, P, 2] (x, y) fractions of each level's map.
        weights: [B, Q, M, L, P].
        form: `auto` is the kernel on CUDA where Triton is installed, bags on the CPU, the gather form while exporting,
            else the reference, which then keeps no samples for the backward pass but takes them again.
    Returns:
        [B, Q, M * d] in the type of `values`. Points and weights count in float32 at least, whatever autocast says:
        bfloat16 would move a point by up to half a cell of a large map.
    Raises:
        ValueError: shapes and values disagree, or there is no kernel for these tensors.
    """
    _check(values, shapes, points, weights)
    points, weights = at_least_float32(points), at_least_float32(weights)
    if form == "auto":
        form = _choose(values, shapes)
        if form == "reference":
            return sample_reference(values, shapes, points, weights, resample=torch.is_grad_enabled())
    if form == "kernel":
        return _sample_kernel(values, shapes, points, weights)
    if form == "bags":
        return sample_bags(at_least_float32(values), shapes, points, weights).to(values.dtype)
    sample = sample_gather if form == "gather" else sample_reference
    return sample(values, shapes, points, weights)


def sample_reference(
    values: Tensor, shapes: Shapes, points: Tensor, weights: Tensor, *, resample: bool = False
) -> Tensor:
    """The definition; arguments as of `sample_points`.

    `resample` saves memory by sampling again in the backward pass.
    """
    narrow, values = values.dtype, at_least_float32(values)
    batch, _, heads, channels = values.shape
    levels = torch.split(values, [height * width for height, width in shapes], dim=1)
    total = values.new_zeros((batch * heads, channels, points.shape[1]))
    for one, (height, width), where, share in zip(levels, shapes, points.unbind(3), weights.unbind(3), strict=True):
        maps = one.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        grid = (where * 2 - 1).transpose(1, 2).flatten(0, 1)  # [BM, Q, P, 2] in -1..1
        strength = share.transpose(1, 2).flatten(0, 1)  # [BM, Q, P]
        if resample:
            total = total + _Resampled.apply(maps, grid, strength)
        else:
            total = total + (_bilinear(maps, grid) * strength[:, None]).sum(-1)
    return total.reshape(batch, heads, channels, -1).permute(0, 3, 1, 2).flatten(2).to(narrow)


def _bilinear(maps: Tensor, grid: Tensor) -> Tensor:
    """[BM, d, H, W] at [BM, Q, P, 2] -> [BM, d, Q, P]."""
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class _Resampled(torch.autograd.Function):
    """`(_bilinear(maps, grid) * strength).sum(P)` of one level, sampled again in the backward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, maps: Tensor, grid: Tensor, strength: Tensor) -> Tensor:
        """[BM, d, H, W], [BM, Q, P, 2], [BM, Q, P] -> [BM, d, Q]."""
        ctx.save_for_backward(maps, grid, strength)
        return _bilinear(maps, grid).mul_(strength[:, None]).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the three inputs."""
        maps, grid, strength = ctx.saved_tensors
        of_strength = _bilinear(maps, grid).mul_(upstream[..., None]).sum(1)
        of_maps, of_grid = torch.ops.aten.grid_sampler_2d_backward(
            upstream[..., None] * strength[:, None], maps, grid, 0, 0, False, [True, True]
        )
        return of_maps, of_grid, of_strength


def sample_gather(values: Tensor, shapes: Shapes, points: Tensor, weights: Tensor) -> Tensor:
    """Sampling by look-ups in one table of cells; arguments as of `sample_points`.

    All levels at once: an exported graph is then no larger for having more of them. A row of the table holds a cell and
    the one before it, so that the four cells around a point are two rows, and a product of matrices weights and sums
    what was found.
    """
    batch, cells, heads, channels = values.shape
    queries, sampled = points.shape[1], points.shape[3] * points.shape[4]
    flat = values.flatten(0, 2)  # [B N M, d]
    table = torch.cat([F.pad(flat, (0, 0, heads, 0)), F.pad(flat, (0, 0, 0, heads))], dim=1)  # [(B N + 1) M, 2 d]
    image = torch.arange(batch, device=values.device)[:, None, None, None, None] * cells
    head = torch.arange(heads, device=values.device)[:, None, None]
    heights, widths, starts = _sides(shapes, values.device)
    x, y = points[..., 0] * widths - 0.5, points[..., 1] * heights - 0.5
    right, top = x.detach().floor() + 1, y.detach().floor()
    left_share = torch.where((right > 0) & (right <= widths), right - x, 0.0) * weights
    right_share = torch.where((right >= 0) & (right < widths), x - right + 1, 0.0) * weights
    total = points.new_zeros((batch * queries * heads, 1, channels))
    for row, row_share in ((top, top + 1 - y), (top + 1, y - top)):
        inside = (row >= 0) & (row < heights) & (right >= 0) & (right <= widths)
        # Chosen before the conversion: a point far outside, or NaN, has no integer.
        cell = torch.where(inside, row * widths + right, 0.0).long()
        share = torch.where(inside, row_share, 0.0)
        strength = torch.stack([share * left_share, share * right_share], dim=-1).reshape(-1, 1, 2 * sampled)
        found = table.index_select(0, ((image + starts + cell) * heads + head).flatten())
        total = total + strength @ found.reshape(-1, 2 * sampled, channels)
    return total.reshape(batch, queries, heads * channels).to(values.dtype)


def _sides(shapes: Shapes, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Heights and widths [L, 1] float32 of the levels, and the cell [L, 1] int64 that each starts at.

    Filled on the device: nothing waits for a copy, and traced sizes stay symbolic.
    """
    heights = [torch.full((1,), height, device=device, dtype=torch.float32) for height, _ in shapes]
    widths = [torch.full((1,), width, device=device, dtype=torch.float32) for _, width in shapes]
    starts, start = [], 0
    for height, width in shapes:
        starts.append(torch.full((1,), start, device=device, dtype=torch.int64))
        start = start + height * width
    return torch.stack(heights), torch.stack(widths), torch.stack(starts)


def corner_cells(points: Tensor, height: int | Tensor, width: int | Tensor) -> list[tuple[Tensor, Tensor]]:
    """The four cells around each point, and their shares in its value.

    Args:
        points: [..., 2] (x, y) fractions of a map.
        height: of the map, in cells; a tensor that broadcasts to [...] where the points are of several maps.
        width: of the map, in cells; likewise.
    Returns:
        Four pairs of cell indices [...] (row by row, within the map) and shares [...] (0 for a cell outside the map).
    """
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.detach().floor(), y.detach().floor()
    right_share, bottom_share = x - left, y - top
    columns = [(x, share, (x >= 0) & (x < width)) for x, share in ((left, 1 - right_share), (left + 1, right_share))]
    rows = [(y, share, (y >= 0) & (y < height)) for y, share in ((top, 1 - bottom_share), (top + 1, bottom_share))]
    found = []
    for row, row_share, row_inside in rows:
        for column, column_share, column_inside in columns:
            inside = row_inside & column_inside
            # Chosen before the conversion: a point far outside, or NaN, has no integer.
            cell = torch.where(inside, row * width + column, 0.0).long()
            found.append((cell, torch.where(inside, row_share * column_share, 0.0)))
    return found


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32; float64 does not change."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _choose(values: Tensor, shapes: Shapes) -> Sampling:
    if torch.compiler.is_exporting():
        return "gather"
    if values.is_cuda and _HAS_TRITON and values.dtype != torch.float64 and len(shapes) <= MAX_KERNEL_LEVELS:
        return "kernel"
    # What is compiled fuses the reference; bags leave PyTorch for a moment.
    return "bags" if values.device.type == "cpu" and not torch.compiler.is_compiling() else "reference"


def _sample_kernel(values: Tensor, shapes: Shapes, points: Tensor, weights: Tensor) -> Tensor:
    if not _HAS_TRITON:
        raise ValueError("sample_points: the kernel needs Triton, which is not installed; use form='auto'")
    from siamdetr.models.deformable.triton_kernel import deformable_sample

    sizes = [size for shape in shapes for size in shape]
    out: Tensor = deformable_sample(values.contiguous(), sizes, points.contiguous(), weights.contiguous())
    return out.flatten(2)


def _check(values: Tensor, shapes: Shapes, points: Tensor, weights: Tensor) -> None:
    """Check the sizes that tracing keeps constant; the number of cells is not checked while exporting."""
    levels = len(shapes)
    if points.shape[3] != levels or weights.shape != points.shape[:-1] or points.shape[-1] != 2:
        raise ValueError(
            f"sample_points: expected points [B, Q, heads, {levels}, P, 2] and weights of the same but the last axis for "
            f"{levels} levels, got {list(points.shape)} and {list(weights.shape)}"
        )
    if torch.compiler.is_compiling():
        return
    cells = sum(height * width for height, width in shapes)
    if values.shape[1] != cells:
        raise ValueError(
            f"sample_points: levels {list(shapes)} have {cells} cells, got values of {values.shape[1]}; give the shapes of "
            "the maps that the values came from"
        )
