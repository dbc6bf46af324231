"""Detections of one image and the attention behind each, from any runtime.

This module does not import torch.

Letters in shapes: L layers, M heads, h and w cells over the image, K boxes, N sampling points of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from siamdetr.images.preprocessing import Prepared
from siamdetr.inference.predictor import ScoredBoxes

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class AttentionMaps:
    """The attention of one query, in every layer and head.

    Attributes:
        maps: [L, M, h, w] over the image without its padding; each sums to 1, less the share of sampling points outside
            the image.
        points: [L, M, N, 2] (x, y) fractions of the image, sampling points of deformable attention on all feature
            levels, some perhaps outside; None for dense attention.
        weights: [L, M, N] of the points, which sum to 1 over N; None for dense attention.
        references: [L, 2 or 4] (cx, cy[, w, h]) fractions of the image, the reference of each layer; None without
            references.
    """

    maps: Floats
    points: Floats | None = None
    weights: Floats | None = None
    references: Floats | None = None


class Inspection(Protocol):
    """Detections of one image by one model, and the attention behind each on demand."""

    @property
    def scored(self) -> ScoredBoxes:
        """All boxes of the image (B = 1), before any threshold, in pixels of the original image."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the original image, pixels."""

    @property
    def has_decoder_attention(self) -> bool:
        """Whether the model records its decoder's attention."""

    @property
    def has_encoder_attention(self) -> bool:
        """Whether the model records its encoder's attention."""

    def decoder_attention(self, box: int) -> AttentionMaps:
        """The decoder's cross-attention for box number `box` of `scored`.

        Raises:
            ValueError: there is no such box, or this model records no attention.
        """

    def encoder_attention(self, x: float, y: float) -> AttentionMaps:
        """The encoder's self-attention for the cell at (x, y), fractions of the image.

        Raises:
            ValueError: the point is outside the image, or this model does not record its encoder's attention.
        """


@dataclass(frozen=True)
class RecordedInspection:
    """An inspection whose arrays are given, such as the outputs of an exported graph.

    Attributes:
        scored: of one image.
        size: (H, W) of the image, pixels.
        attention: [L, M, K, h, w] of each scored box; None: the graph has no such output.
    """

    scored: ScoredBoxes
    size: tuple[int, int]
    attention: Floats | None

    @property
    def has_decoder_attention(self) -> bool:
        """Whether the graph has an output `attention`."""
        return self.attention is not None

    @property
    def has_encoder_attention(self) -> bool:
        """Always False: a graph contains the decoder's attention only."""
        return False

    def decoder_attention(self, box: int) -> AttentionMaps:
        """The decoder's attention for a box; see `Inspection`."""
        if self.attention is None:
            raise ValueError(
                "this file keeps no attention; export it again with --attention, or open the run's checkpoint"
            )
        check_box(box, self.scored)
        return AttentionMaps(maps=self.attention[:, :, box])

    def encoder_attention(self, x: float, y: float) -> AttentionMaps:
        """Always raises a ValueError; see `Inspection`."""
        raise ValueError("an exported file keeps no attention of its encoder; open the run's checkpoint instead")


def inspection_of_outputs(outputs: Mapping[str, NDArray[Any]], batch: Prepared) -> RecordedInspection:
    """The inspection of one image from a graph's outputs.

    Args:
        outputs: by name. `boxes`, `scores`, `labels` [1, K, ...]; if it has it, `attention`: [1, L, M, K, h, w] of the
            boxes, or [1, M, Q, h, w] of the last layer's queries, with `queries` [1, K], the query of each box.
        batch: that one image, prepared.
    """
    attention = outputs.get("attention")
    if attention is not None:
        attention = attention[0] if attention.ndim == 6 else attention[:, :, outputs["queries"][0]]  # [L, M, K, h, w]
        parts = batch.sizes[0] / batch.images.shape[2:]  # the image's share of the padded input
        height, width = (max(1, round(n * part)) for n, part in zip(attention.shape[-2:], parts, strict=True))
        attention = attention[..., :height, :width].astype(np.float32, copy=False)
    return RecordedInspection(
        scored=ScoredBoxes(scores=outputs["scores"], labels=outputs["labels"], boxes=outputs["boxes"]),
        size=(int(batch.original_sizes[0, 0]), int(batch.original_sizes[0, 1])),
        attention=attention,
    )


def check_box(box: int, scored: ScoredBoxes) -> None:
    """Check that `box` is a box of the first image; raises ValueError."""
    count = scored.scores.shape[1]
    if not 0 <= box < count:
        raise ValueError(f"box: got number {box}, expected 0 to {count - 1}")


def check_point(x: float, y: float) -> None:
    """Check that (x, y) are fractions of an image; raises ValueError."""
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ValueError(f"point: got ({x:g}, {y:g}), expected fractions of the image from 0 to 1")
