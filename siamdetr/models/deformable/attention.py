"""Multi-scale deformable attention (Zhu et al. 2020, arXiv:2010.04159, §4.1).

A query attends to a few points around its reference point in each feature level;
it predicts their sampling offsets and attention weights itself.

Letters in shapes: B images, N cells of all levels, Q queries, D width, M heads, L levels, P points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from siamdetr.models.attention import Observed
from siamdetr.models.deformable.sampling import Sampling, Shapes, at_least_float32, corner_cells, sample_points


@dataclass(frozen=True)
class Levels:
    """The feature levels of a batch; the same in every layer."""

    shapes: Shapes  # (height, width) of each level, in cells
    sizes: Tensor  # [L, 2] float32 (width, height) of each level, in cells
    valid: Tensor | None  # [B, L, 2] float32 (width, height) of the unpadded image as a fraction of the level; None = 1


def describe_levels(shapes: Shapes, padding: Tensor | None, *, device: torch.device) -> Levels:
    """Sizes of the levels, and how much of each is image.

    Args:
        shapes: (height, width) of each level.
        padding: [B, N] bool, True = padded; None = nothing is.
        device: of the sizes.

    As in the official code the valid part is measured along the first row and column: padding is at the right and
    bottom.
    """
    # Filled on the device, so that nothing waits for a copy, and traced sizes stay symbolic.
    sides = [
        torch.full((), side, device=device, dtype=torch.float32) for height, width in shapes for side in (width, height)
    ]
    sizes = torch.stack(sides).view(len(shapes), 2)
    if padding is None:
        return Levels(shapes, sizes, None)
    parts, start = [], 0
    for height, width in shapes:
        image = ~padding.narrow(1, start, height * width).reshape(-1, height, width)  # [B, H, W]
        parts.append(torch.stack([image[:, 0].sum(1), image[:, :, 0].sum(1)], dim=-1))
        start = start + height * width
    return Levels(shapes, sizes, torch.stack(parts, dim=1) / sizes)


def place_on_levels(references: Tensor, levels: Levels) -> Tensor:
    """References as fractions of each level's whole map.

    Args:
        references: [B, Q, 2 | 4] (cx, cy[, w, h]) fractions of the unpadded image.
        levels: of the batch.
    Returns:
        [B, Q, L, 2 | 4], float32 at least.
    """
    wide = at_least_float32(references)[:, :, None]
    if levels.valid is None:
        return wide.expand(-1, -1, len(levels.shapes), -1)
    return wide * levels.valid.repeat(1, 1, references.shape[-1] // 2)[:, None]


class DeformableAttention(Observed):
    """Deformable attention with its four projections.

    Args:
        dim: D.
        heads: M; D is a multiple, and need not be one of a power of two.
        levels: L.
        points: P of each level, or one number for all.
        observable: whether `record_attention` watches it.
    Raises:
        ValueError: D is not a multiple of M.

    `sampling` may be set: see `sample_points`.
    """

    def __init__(
        self, dim: int, heads: int, *, levels: int, points: int | tuple[int, ...], observable: bool = False
    ) -> None:
        super().__init__(observable=observable)
        if dim % heads:
            raise ValueError(f"deformable attention: expected a width divisible by {heads} heads, got {dim}")
        self.heads, self.levels = heads, levels
        self.points = (points,) * levels if isinstance(points, int) else points
        if len(self.points) != levels:
            raise ValueError(
                f"deformable attention: expected points of each of {levels} levels, got {list(self.points)}"
            )
        self.sampling: Sampling = "auto"
        self.offsets = nn.Linear(dim, heads * sum(self.points) * 2)
        self.weights = nn.Linear(dim, heads * sum(self.points))
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Set the initial sampling offsets (§A.2): a direction per head, points 1, 2, ... cells away.

        All attention weights are equal.
        """
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().max(-1, keepdim=True).values  # [M, 2], on a square
        steps = torch.cat([torch.arange(1, points + 1, dtype=torch.float32) for points in self.points])
        grid = directions[:, None] * steps[:, None]  # [M, LP, 2]
        nn.init.zeros_(self.offsets.weight)
        self.offsets.bias.copy_(grid.flatten())
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        for layer in (self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, query: Tensor, references: Tensor, tokens: Tensor, padding: Tensor | None, *, levels: Levels
    ) -> Tensor:
        """
        Args:
            query: [B, Q, D], with its position added.
            references: [B, Q, L, 2] points or [B, Q, L, 4] boxes (cx, cy, w, h), fractions of each level's whole map.
                Offsets from a point are in cells; from a box in half boxes, divided by the number of points.
            tokens: [B, N, D] that the queries attend to.
            padding: [B, N] bool, True = padded, which counts as zero; None = nothing is.
            levels: of the tokens.
        Returns:
            [B, Q, D].
        """
        values: Tensor = self.value(tokens)
        if padding is not None:
            values = values.masked_fill(padding[..., None], 0.0)
        points, weights = self.look(query, references, levels)
        if self.recorder is not None:
            self.recorder.record(splat(points.detach(), weights.detach(), levels.shapes[0]))
        values = values.reshape(*values.shape[:2], self.heads, -1)  # [B, N, M, d]
        out: Tensor = self.out(sample_points(values, levels.shapes, points, weights, form=self.sampling))
        return out

    def look(self, query: Tensor, references: Tensor, levels: Levels) -> tuple[Tensor, Tensor]:
        """Sampling points and weights of each query; arguments as in `forward`.

        Returns:
            [B, Q, M, L, P, 2] (x, y) fractions of each level's map, and [B, Q, M, L, P] weights, which sum to 1 over
            levels and points.
        """
        return self._points(query, references, levels), self._weights(query)

    def _points(self, query: Tensor, references: Tensor, levels: Levels) -> Tensor:
        """Sampling points [B, Q, M, L, P, 2], fractions of each level's map, in float32.

        Half precision would move a point by half a cell.
        """
        flat: Tensor = self.offsets(query).to(references.dtype)
        around = references[:, :, None, :, None]  # [B, Q, 1, L, 1, 2 | 4]
        parts = flat.reshape(*flat.shape[:2], self.heads, -1, 2).split_with_sizes(self.points, dim=3)  # of each level
        if references.shape[-1] == 2:
            return around + self._stack(parts, axis=3) / levels.sizes.to(flat.dtype)[:, None]
        offsets = self._stack([part / count for part, count in zip(parts, self.points, strict=True)], axis=3)
        return around[..., :2] + offsets * around[..., 2:] * 0.5

    def _weights(self, query: Tensor) -> Tensor:
        """[B, Q, M, L, P], which sum to 1 over levels and points."""
        scores = at_least_float32(self.weights(query))
        shares = scores.reshape(*scores.shape[:2], self.heads, -1).softmax(-1)
        return self._stack(shares.split_with_sizes(self.points, dim=3), axis=3)

    def _stack(self, parts: Sequence[Tensor], *, axis: int) -> Tensor:
        """One tensor per level, [..., P_l, ...] -> [..., L, P, ...], zero where a level has fewer points."""
        most = max(self.points)
        if min(self.points) == most:
            return torch.stack(list(parts), dim=axis)
        trailing = (0, 0) * (parts[0].ndim - 1 - axis)
        return torch.stack(
            [nn.functional.pad(part, (*trailing, 0, most - part.shape[axis])) for part in parts], dim=axis
        )


def splat(points: Tensor, weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """Draw the points as a map: the weight of each is distributed over the four cells around it.

    Args:
        points: [B, Q, M, L, P, 2] (x, y) fractions of each level's map; all levels cover one image, so all go on one
            grid.
        weights: [B, Q, M, L, P].
        grid: (H, W) of the picture, in cells.
    Returns:
        [B, M, Q, H, W]; sums over H and W to the weights' sum, less what lies outside the map or within half a cell of
        its edge.
    """
    height, width = grid
    picture = weights.new_zeros((*weights.shape[:3], height * width))
    for cell, share in corner_cells(points, height, width):
        picture.scatter_add_(-1, cell.flatten(-2), (share * weights).flatten(-2).to(picture.dtype))
    return picture.reshape(*weights.shape[:3], height, width).transpose(1, 2)


def has_deformable_attention(detector: nn.Module) -> bool:
    """Whether a detector has any deformable attention."""
    return any(isinstance(module, DeformableAttention) for module in detector.modules())
