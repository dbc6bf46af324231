"""The parts of a detector, which its builder supplies and `Detector` composes.

A builder takes the settings and the channels of the backbone's maps, and returns initialised parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from siamdetr.models.heads import Heads
from siamdetr.models.queries import QuerySource
from siamdetr.structures.model import Queries


@dataclass(frozen=True)
class VariantParts:
    """The modules between backbone and predictions. Their calls are the same for every detector:

    `input_projection(maps of the backbone) -> ([B, D, h, w] of each level, finest first)`
    `encoder(projected levels, padding [B, H, W] | None) -> Memory`
    `queries(batch_size) -> Queries`; see `QuerySource`
    `decoder(queries, memory, heads) -> Decoded`, which places its own boxes
    """

    input_projection: nn.Module
    encoder: nn.Module
    queries: QuerySource
    decoder: nn.Module
    heads: Heads


@runtime_checkable
class LearnedPoints(Protocol):
    """A decoder that predicts its first reference points from the queries, unless they have anchors."""

    def start(self, queries: Queries) -> Tensor:
        """[B, Q, 2] reference points of the first layer, fractions of the unpadded image."""


@runtime_checkable
class OwnInitialization(Protocol):
    """A module with its own initialisation instead of Xavier's."""

    def initialize(self) -> None:
        """Initialise the module's own parameters."""


@torch.no_grad()
def initialize_transformer(*modules: nn.Module) -> None:
    """Initialise as the official code does.

    Xavier for all weights, then the modules with their own initialisation.
    """
    for module in modules:
        for parameter in module.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        for part in module.modules():
            if isinstance(part, OwnInitialization):
                part.initialize()
