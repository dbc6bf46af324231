"""The data between the parts of a detector: queries, memory, decoded queries, outputs. Batch first.

Letters in shapes: B images, Q queries, D width, N feature cells, L decoder layers, C logits.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Queries:
    """The input of the decoder, besides the memory.

    `content` and `position` are added or concatenated by each decoder in its own way. A pretext that conditions queries
    on image regions adds to `position` with `dataclasses.replace`; a decoder derives everything else, such as reference
    points, from its input.
    """

    content: Tensor  # [B, Q, D]
    position: Tensor | None  # [B, Q, D]
    anchors: Tensor | None = None  # [B, Q, 2 | 4] (cx, cy[, w, h]) fractions of the unpadded image
    attention_mask: Tensor | None = None  # [Q, Q] bool, True = row must not attend to column
    num_denoising: int = 0  # the first queries that only serve training


@dataclass(frozen=True)
class Memory:
    """The encoded image."""

    tokens: Tensor  # [B, N, D]
    position: Tensor  # [B, N, D] sine position of each cell
    padding: Tensor | None  # [B, N] bool, True = padded, not image; None = nothing is padded
    shapes: tuple[tuple[int, int], ...]  # (height, width) in cells of each feature level; they sum to N


@dataclass(frozen=True)
class Decoded:
    """The output of a decoder."""

    hidden: Tensor  # [L, B, Q, D], normalised
    boxes: Tensor  # [L, B, Q, 4] (cx, cy, w, h) fractions of the unpadded image
    references: Tensor | None  # [L, B, Q, 2 | 4] where each layer attends from; points where one of them has no box
    proposals: Outputs | None = None  # the encoder's boxes that have losses of their own, one layer


@dataclass(frozen=True)
class Outputs:
    """Predictions of every decoder layer; the last one is the result, the others have auxiliary losses."""

    logits: Tensor  # [L, B, Q, C]
    boxes: Tensor  # [L, B, Q, 4] (cx, cy, w, h) fractions of the unpadded image
    hidden: Tensor  # [L, B, Q, D]
    denoised: Outputs | None = None  # of the denoising queries, which are not in the fields above
    proposals: Outputs | None = None  # of the encoder (two-stage), one layer: what the queries were chosen from
