"""Sources of a decoder's queries; this file has the learned ones.

Other detectors' sources follow the same protocol.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

import torch
from torch import nn

from siamdetr.structures.model import Queries

if TYPE_CHECKING:
    from siamdetr.models.denoising import Draws
    from siamdetr.settings.detector import DenoisingSettings
    from siamdetr.structures.targets import Targets


class QuerySource(nn.Module, abc.ABC):
    """The queries of a detector, for inference and for training.

    Args:
        region_width: the number of first channels of a query into which a pretext may write region features.
    """

    def __init__(self, region_width: int) -> None:
        super().__init__()
        self.region_width = region_width

    @abc.abstractmethod
    def forward(self, batch_size: int) -> Queries:
        """The queries for `batch_size` images."""

    def for_training(self, targets: Targets, settings: DenoisingSettings, draws: Draws | None = None) -> Queries:
        """The queries of a training step; denoising detectors put denoising queries before them.

        Args:
            targets: boxes and labels of the images that will be decoded, on the detector's device.
            settings: how many denoising queries, how much noise.
            draws: the random numbers of the noise; None: from torch's own generator.
        """
        queries: Queries = self(len(targets.counts))
        return queries

    def keep_labels(self, first: int, last: int) -> None:
        """Drop, in place, the parameters of all labels except first..last-1, which become 0, 1, ..."""


class LearnedQueries(QuerySource):
    """`num_queries` learned positions, the same for every image; content starts at zero."""

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__(region_width=dim)
        self.position = nn.Embedding(num_queries, dim)

    def forward(self, batch_size: int) -> Queries:
        """Queries for `batch_size` images: position [B, Q, D] (a view of the learned one), content zero."""
        position = self.position.weight.expand(batch_size, -1, -1)
        return Queries(content=torch.zeros_like(position), position=position)
