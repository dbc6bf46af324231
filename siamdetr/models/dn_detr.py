"""DN-DETR and DN-DAB-Deformable-DETR (Li et al. 2022, arXiv:2203.01305).

They are DAB detectors with denoising queries in training.

Encoder and decoder are those of the DAB detector. The queries differ: they have learned contents, one channel of which
says whether a query is a denoising one (`siamdetr.models.denoising`).
"""

from __future__ import annotations

from functools import partial

from torch import nn

from siamdetr.models.dab_deformable_detr import assemble_dab_deformable
from siamdetr.models.dab_detr import assemble_dab, repeat_for_patterns
from siamdetr.models.denoising import INDICATOR_CHANNELS, Draws, add_noise, group_count, prepend_denoising
from siamdetr.models.parts import VariantParts
from siamdetr.models.queries import QuerySource
from siamdetr.settings.detector import DenoisingSettings, DetectorSettings
from siamdetr.structures.model import Queries
from siamdetr.structures.targets import Targets


class DenoisingQueries(QuerySource):
    """Learned boxes with learned content, and in training denoising queries before them.

    Args:
        settings: the detector's.
        contents: 1, common to all boxes (DN-DETR), or one a box (DN-DAB-Deformable-DETR).
    """

    def __init__(self, settings: DetectorSettings, contents: int) -> None:
        dim = settings.dim - INDICATOR_CHANNELS
        super().__init__(region_width=dim)
        self.num_classes = settings.num_classes
        self.anchors = nn.Embedding(settings.num_queries, 4)  # before the sigmoid
        self.content = nn.Embedding(contents, dim)
        self.labels = nn.Embedding(settings.num_classes, dim)
        self.patterns = nn.Embedding(settings.num_patterns, settings.dim) if settings.num_patterns else None

    def forward(self, batch_size: int) -> Queries:
        """The matching queries alone, for `batch_size` images: anchors [B, Q, 4], content, no position."""
        content = nn.functional.pad(self.content.weight, (0, INDICATOR_CHANNELS))  # [1 | Q, D]
        content, anchors = repeat_for_patterns(content, self.anchors.weight.sigmoid(), self.patterns)
        if self.training:  # with several processes every parameter needs a gradient, even if nothing was noised
            content = content + 0 * self.labels.weight.sum()
        return Queries(
            content=content.expand(batch_size, -1, -1), position=None, anchors=anchors.expand(batch_size, -1, -1)
        )

    def keep_labels(self, first: int, last: int) -> None:
        """Drop, in place, the contents of all labels except first..last-1, which become 0, 1, ..."""
        kept = self.labels.weight[first:last].detach().clone()
        self.labels = nn.Embedding(last - first, kept.shape[1], _weight=kept)
        self.num_classes = last - first

    def for_training(self, targets: Targets, settings: DenoisingSettings, draws: Draws | None = None) -> Queries:
        """Denoising and matching queries for the images of `targets`.

        Only the matching ones where no image has a box.
        """
        queries: Queries = self(len(targets.counts))
        groups = group_count(settings, targets)
        if groups == 0:
            return queries
        if draws is None:
            draws = Draws.sample(groups * len(targets.labels), self.num_classes, device=queries.content.device)
        labels, boxes = add_noise(targets, settings, draws)
        return prepend_denoising(queries, targets, label_content=self.labels(labels), noised_boxes=boxes, groups=groups)


def build_dn(settings: DetectorSettings, channels: tuple[int, ...]) -> VariantParts:
    """The parts of DN-DETR; all matching queries share one content."""
    return assemble_dab(settings, channels, partial(DenoisingQueries, contents=1))


def build_dn_deformable(settings: DetectorSettings, channels: tuple[int, ...]) -> VariantParts:
    """The parts of DN-DAB-Deformable-DETR; each matching query has a content of its own."""
    return assemble_dab_deformable(settings, channels, partial(DenoisingQueries, contents=settings.num_queries))
