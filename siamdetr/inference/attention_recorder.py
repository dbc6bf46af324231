"""Record the queries and keys of a detector's attentions, to compute attention maps on demand.

The maps of all queries of all layers take hundreds of megabytes for a large detector; the queries and keys they follow
from take a few. `trace_attention` records those through hooks, so the detector runs unchanged, on its fused kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from siamdetr.models.attention import Observed, ScaledDotProduct
from siamdetr.models.deformable.attention import DeformableAttention, Levels, splat
from siamdetr.models.detector import Detector
from siamdetr.structures.model import Decoded


@dataclass(frozen=True)
class DensePass:
    """One dense attention: every query attends to every cell."""

    query: Tensor  # [B, M, Q, d]
    key: Tensor  # [B, M, K, d]
    bias: Tensor | None  # broadcasts to [B, M, Q, K]

    def weights(self, image: int, query: int) -> Tensor:
        """[M, K], which sum to 1 over K."""
        scores = (self.key[image] @ self.query[image, :, query, :, None])[..., 0].float()
        scores = scores / self.query.shape[-1] ** 0.5
        if self.bias is not None:
            bias = self.bias.expand(*self.query.shape[:3], self.key.shape[2])
            scores = scores + bias[image, :, query]
        weights: Tensor = scores.softmax(-1)
        return weights


@dataclass(frozen=True)
class SampledPass:
    """One deformable attention: every query samples a few points of every level."""

    module: DeformableAttention
    query: Tensor  # [B, Q, D]
    references: Tensor  # [B, Q, L, 2 | 4], fractions of each level's whole map
    levels: Levels

    def points(self, image: int, query: int) -> tuple[Tensor, Tensor]:
        """Sampling points [M, L P, 2] (x, y) of a query, fractions of the unpadded image; weights [M, L P]."""
        row = slice(query, query + 1)
        one = slice(image, image + 1)
        points, weights = self.module.look(self.query[one, row], self.references[one, row], self.levels)
        if self.levels.valid is not None:
            points = points / self.levels.valid[image, :, None]
        return points[0, 0].flatten(1, 2), weights[0, 0].flatten(1, 2)


AttentionPass = DensePass | SampledPass


@dataclass
class AttentionTrace:
    """The attentions that `trace_attention` records, layer by layer.

    Later passes of the detector are appended.
    """

    encoder: list[AttentionPass] = field(default_factory=list)
    decoder: list[AttentionPass] = field(default_factory=list)
    references: Tensor | None = None  # of `Decoded`

    def references_of(self, image: int) -> Tensor | None:
        """[L, Q, 2 or 4] references of each decoder layer; None for a decoder without references."""
        return None if self.references is None else self.references[:, image]


def map_of(passed: AttentionPass, query: int, grid: tuple[int, int], *, image: int = 0) -> Tensor:
    """The attention map of one query.

    Args:
        passed: one layer's attention.
        query: its row.
        grid: (h, w) cells. For dense attention the cells of the feature map, h * w = K. For deformable attention any
            grid over the unpadded image; each point is distributed over the four cells around it.
        image: of the batch.
    Returns:
        [M, h, w]. Sums to 1, less the share of sampling points outside the image.
    """
    if isinstance(passed, DensePass):
        weights = passed.weights(image, query)
        return weights.reshape(-1, *grid)
    points, weights = passed.points(image, query)
    return splat(points[None, None, :, None], weights[None, None, :, None], grid)[0, :, 0]


@contextmanager
def trace_attention(detector: Detector) -> Iterator[AttentionTrace]:
    """Record the attentions of encoder and decoder while a batch passes through.

    Example:
        with trace_attention(detector) as trace:
            detector(images)
        map_of(trace.decoder[-1], 7, (25, 34))  # [M, 25, 34]
    """
    trace = AttentionTrace()
    handles = []
    for module in detector.encoder.modules():
        if isinstance(module, Observed):
            handles.append(module.register_forward_pre_hook(_keep(trace.encoder), with_kwargs=True))
    for module in detector.decoder.modules():
        if isinstance(module, Observed) and module.observable:
            handles.append(module.register_forward_pre_hook(_keep(trace.decoder), with_kwargs=True))

    def keep_references(module: nn.Module, inputs: Any, decoded: Decoded) -> None:
        trace.references = decoded.references

    handles.append(detector.decoder.register_forward_hook(keep_references))
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def _keep(passes: list[AttentionPass]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if isinstance(module, ScaledDotProduct):
            passes.append(DensePass(inputs[0].detach(), inputs[1].detach(), named["bias"]))
        else:
            assert isinstance(module, DeformableAttention)
            passes.append(SampledPass(module, inputs[0].detach(), inputs[1].detach(), named["levels"]))

    return hook
