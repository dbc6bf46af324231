"""What makes a detector a variant: its queries and its decoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class VariantParts:
    """The parts that a builder supplies.

    `queries(batch_size) -> Queries` and `decoder(queries, memory) -> Decoded` (`siamdetr.models.structures`).
    """

    queries: nn.Module
    decoder: nn.Module
    boxes_start_at_reference: bool  # the box head's last layer starts at zero: the first boxes lie on their references
