"""What makes a detector a variant: its encoder, its queries and its decoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class VariantParts:
    """The parts that a builder supplies.

    `encoder(tokens, position, padding) -> tokens`, `queries(batch_size) -> Queries` and `decoder(queries, memory) -> Decoded`
    (`siamdetr.structures.model`). A decoder that refines its references from layer to layer gets the box head as well, one that
    may propose them from the image the class head and the box head.
    """

    encoder: nn.Module
    queries: nn.Module
    decoder: nn.Module
    boxes_start_at_reference: bool  # the box head's last layer starts at zero: the first boxes lie on their references
    refines: bool = False  # decoder(queries, memory, box_head): references follow the boxes from layer to layer
    proposes: bool = False  # decoder(queries, memory, class_head, box_head)
    reference_eps: float = 1e-5  # distance that references are kept from 0 and 1
    deformable: bool = False  # encoder(maps, padding) -> Memory
    reserved_channels: int = 0  # the last channels of a query's content that no pretext may write into
