"""Sampling of deformable attention on a CPU: a query's weighted sum is a bag of rows of one table.

A bilinear sample is a weighted sum of four cells, so a query and head sum 4 L P rows of d numbers. PyTorch's
`embedding_bag` adds such rows as it reads them and writes no sample to memory. The bags are the rows of a sparse matrix
S with 4 L P entries each: forward is S V, the gradient of the values Sᵀ G, and that of the entries the products of G
and V at the places of S. Each of the three reads a row once. Queries go in tiles whose indices and shares stay in the
cache; they are computed again in the backward pass, which is cheaper than keeping them.

Every level has a border of zero cells in the table, so that a neighbour outside the map needs no test of its own.

Letters in shapes: B images, N cells of all levels, N' with borders, Q queries, T of a tile, M heads, d channels a head,
L levels, P points, K = L P.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

Shapes = tuple[tuple[int, int], ...]  # (height, width) of each level, in cells

_TILE_POINTS = 2**16  # of a tile: a temporary of 4 bytes each is then 256 KiB
_ENTRIES_PER_ROW = 16  # of the table, at least, before a gradient as large as the table is worth its pass over memory


def sample_bags(values: Tensor, shapes: Shapes, points: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of samples on a CPU; arguments as of `sample_points`, all float32 or all float64."""
    out: Tensor = _Bags.apply(values, points, weights, shapes)
    return out


class _Bags(torch.autograd.Function):
    """See `sample_bags`."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, points: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
        """[B, N, M, d], [B, Q, M, L, P, 2], [B, Q, M, L, P] -> [B, Q, M * d]."""
        table = _to_table(values, shapes)
        ctx.save_for_backward(table, points, weights)
        ctx.shapes = shapes  # type: ignore[attr-defined]
        out = values.new_empty((*points.shape[:3], values.shape[3]))
        for tile in _tiles(_Grid.of(shapes, points), points, weights):
            bags = tile.rows.flatten(), tile.starts[:-1], tile.shares.flatten()
            summed = F.embedding_bag(bags[0], table[tile.image], bags[1], mode="sum", per_sample_weights=bags[2])
            out[tile.image, tile.queries] = summed.view(-1, *out.shape[2:])
        return out.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of values, points and weights."""
        table, points, weights = ctx.saved_tensors
        grid = _Grid.of(ctx.shapes, points)
        upstream = upstream.reshape(*points.shape[:3], -1)  # [B, Q, M, d]
        of_points, of_weights, of_table = (torch.empty_like(x) for x in (points, weights, table))
        of_table.zero_()

        def tiles_with_gradients() -> Iterator[_Tile]:
            for tile in _tiles(grid, points, weights):
                place = (tile.image, tile.queries)
                products = _products(tile, upstream[place].flatten(0, 1), table[tile.image])
                found = _chain(products, tile, weights[place].flatten(2), grid)
                of_points[place], of_weights[place] = found[0].view_as(points[place]), found[1].view_as(weights[place])
                yield tile

        def scatter(tiles: list[_Tile]) -> tuple[int, NDArray[Any]]:
            queries = slice(tiles[0].queries.start, tiles[-1].queries.stop)
            image = tiles[0].image
            return image, _scatter(tiles, upstream[image, queries].flatten(0, 1), rows=table.shape[1])

        groups = _groups(tiles_with_gradients(), _ENTRIES_PER_ROW * table.shape[1])
        for image, part in _in_background(scatter, groups):
            of_table[image] += torch.from_numpy(part)
        return _from_table(of_table, ctx.shapes, points.shape[2]), of_points, of_weights, None


@dataclass(frozen=True)
class _Grid:
    """The place of each point's level in the table.

    Expanded over heads and points, so that the inner loops are long.
    """

    width: Tensor  # [M, K] of each map, in cells, in the type of the points
    height: Tensor  # [M, K]
    stride: Tensor  # [M, K] int32, rows of the table from a cell to the one below
    start: Tensor  # [M, K] int32, the row of cell (0, 0)
    corners: Tensor  # [4, K] int32, rows from the top left neighbour of a point to each of the four

    @classmethod
    def of(cls, shapes: Shapes, points: Tensor) -> _Grid:
        """The grid of levels with borders, for points [B, Q, M, L, P, 2]."""
        heads, each = points.shape[2], points.shape[4]
        heights, widths = np.array(shapes, dtype=np.int64).T
        ends = np.cumsum((heights + 2) * (widths + 2))
        first = np.concatenate([[0], ends[:-1]]) + widths + 3  # beyond one row and one cell of border
        stride = (widths + 2) * heads
        corners = np.stack([0 * stride, 0 * stride + heads, stride, stride + heads])

        def written(of_levels: NDArray[np.int64], rows: int, dtype: torch.dtype) -> Tensor:
            of_points = np.repeat(np.broadcast_to(of_levels, (rows, len(shapes))), each, axis=1)
            return torch.as_tensor(of_points, dtype=dtype)

        return cls(
            width=written(widths, heads, points.dtype),
            height=written(heights, heads, points.dtype),
            stride=written(stride, heads, torch.int32),
            start=written(first * heads + np.arange(heads)[:, None], heads, torch.int32),
            corners=written(corners, 4, torch.int32),
        )


@dataclass(frozen=True)
class _Axis:
    """Points along one axis: [T, M, K] each."""

    cell: Tensor  # the neighbour before the point, -1 to size - 1, integral
    fraction: Tensor  # of a cell, from that neighbour's centre, 0..1
    inside: Tensor  # bool; False: clamped to the border, so that moving the point changes nothing

    @classmethod
    def of(cls, coordinates: Tensor, size: Tensor) -> _Axis:
        """Positions on a map of `size` cells, from fractions of it.

        NaN counts as outside and stays NaN, so that the sum shows it.
        """
        place = coordinates * size - 0.5
        clamped = torch.minimum(place.clamp(min=-1), size)
        cell = torch.minimum(clamped.floor(), size - 1).nan_to_num_(-1.0)
        return cls(cell, clamped - cell, clamped == place)


@dataclass(frozen=True)
class _Tile:
    """The bags of T queries of one image; corners: top left, top right, bottom left, bottom right."""

    image: int
    queries: slice
    rows: Tensor  # [T, M, 4, K] int32, of the image's table
    shares: Tensor  # [T, M, 4, K], weight times bilinear share
    x: _Axis
    y: _Axis

    @property
    def starts(self) -> Tensor:
        """[T M + 1] int32, where each bag starts in the flat entries, and their number."""
        return torch.arange(0, self.rows.numel() + 1, self.rows[0, 0].numel(), dtype=torch.int32)


def _tiles(grid: _Grid, points: Tensor, weights: Tensor) -> Iterator[_Tile]:
    """All queries of all images, a tile at a time."""
    images, total = points.shape[:2]
    step = max(1, _TILE_POINTS * torch.get_num_threads() // weights[0, 0].numel())
    for image in range(images):
        for start in range(0, total, step):
            queries = slice(start, min(start + step, total))
            yield _tile(grid, points[image, queries].flatten(2, 3), weights[image, queries].flatten(2), image, queries)


def _tile(grid: _Grid, points: Tensor, weights: Tensor, image: int, queries: slice) -> _Tile:
    x, y = _Axis.of(points[..., 0], grid.width), _Axis.of(points[..., 1], grid.height)
    heads = points.shape[1]
    first = y.cell.int() * grid.stride + x.cell.int() * heads + grid.start  # [T, M, K]
    rows = first[:, :, None] + grid.corners
    shares = weights.new_empty(rows.shape)
    right = weights * x.fraction
    left = weights - right
    torch.mul(right, y.fraction, out=shares[:, :, 3])
    torch.mul(left, y.fraction, out=shares[:, :, 2])
    torch.sub(right, shares[:, :, 3], out=shares[:, :, 1])
    torch.sub(left, shares[:, :, 2], out=shares[:, :, 0])
    return _Tile(image, queries, rows, shares, x, y)


def _to_table(values: Tensor, shapes: Shapes) -> Tensor:
    """[B, N, M, d] -> [B, N' M, d], zeros in the borders."""
    batch, _, heads, channels = values.shape
    levels = torch.split(values, [height * width for height, width in shapes], dim=1)
    framed = [
        F.pad(level.reshape(batch, *shape, heads * channels), (0, 0, 1, 1, 1, 1)).flatten(1, 2)
        for level, shape in zip(levels, shapes, strict=True)
    ]
    return torch.cat(framed, dim=1).view(batch, -1, channels)


def _from_table(table: Tensor, shapes: Shapes, heads: int) -> Tensor:
    """[B, N' M, d] -> [B, N, M, d], without the borders."""
    batch, _, channels = table.shape
    levels = torch.split(table.view(batch, -1, heads, channels), [(h + 2) * (w + 2) for h, w in shapes], dim=1)
    inner = [
        level.view(batch, height + 2, width + 2, heads, channels)[:, 1:-1, 1:-1].flatten(1, 2)
        for level, (height, width) in zip(levels, shapes, strict=True)
    ]
    return torch.cat(inner, dim=1)


def _products(tile: _Tile, upstream: Tensor, table: Tensor) -> Tensor:
    """[T, M, 4, K]: the gradient [T M, d] of each bag times each of its rows of the table [N' M, d]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse CSR tensors call themselves beta
        places = torch.sparse_csr_tensor(
            tile.starts, tile.rows.flatten(), tile.shares.flatten(), (len(upstream), len(table)), check_invariants=False
        )
        found: Tensor = torch.sparse.sampled_addmm(places, upstream, table.t(), beta=0.0)
        return found.values().view(tile.rows.shape)


def _chain(products: Tensor, tile: _Tile, weights: Tensor, grid: _Grid) -> tuple[Tensor, Tensor]:
    """Gradients of points [T, M, K, 2] and weights [T, M, K] by the chain rule of the bilinear shares."""
    top_left, top_right, bottom_left, bottom_right = products.unbind(2)
    along_top, along_bottom = top_right - top_left, bottom_right - bottom_left
    top = torch.addcmul(top_left, tile.x.fraction, along_top)
    down = torch.addcmul(bottom_left, tile.x.fraction, along_bottom) - top
    of_weights = torch.addcmul(top, tile.y.fraction, down)
    of_x = torch.lerp(along_top, along_bottom, tile.y.fraction) * weights * grid.width * tile.x.inside
    of_y = down * weights * grid.height * tile.y.inside
    return torch.stack([of_x, of_y], dim=-1), of_weights


def _groups(tiles: Iterator[_Tile], entries: int) -> Iterator[list[_Tile]]:
    """Group neighbouring tiles of one image into at least `entries` entries, if there are so many."""
    group: list[_Tile] = []
    for tile in tiles:
        if group and (tile.image != group[0].image or sum(one.rows.numel() for one in group) >= entries):
            yield group
            group = []
        group.append(tile)
    if group:
        yield group


def _scatter(tiles: list[_Tile], upstream: Tensor, *, rows: int) -> NDArray[Any]:
    """[N' M, d]: gradient of the table from the gradients [T M, d] of some tiles' bags."""
    shares = np.concatenate([tile.shares.numpy().ravel() for tile in tiles])
    places = np.concatenate([tile.rows.numpy().ravel() for tile in tiles])
    starts = np.arange(0, len(shares) + 1, tiles[0].rows[0, 0].numel(), dtype=np.int32)
    matrix = sparse.csc_matrix((shares, places, starts), shape=(rows, len(upstream)), copy=False)
    found: NDArray[Any] = matrix @ upstream.numpy()
    return found


def _in_background(
    function: Callable[[list[_Tile]], tuple[int, NDArray[Any]]], groups: Iterator[list[_Tile]]
) -> Iterator[tuple[int, NDArray[Any]]]:
    """`map` on further threads, while this one forms the groups; in sequence if there is one thread."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(function, groups)
        return
    with ThreadPoolExecutor(threads - 1) as pool:
        yield from pool.map(function, groups)
