"""AP of an exported file and of PyTorch on the same labelled images, with the interval of the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import NonFiniteOutputError
from siamdetr.evaluation.coco import detect
from siamdetr.evaluation.results import Results
from siamdetr.evaluation.scorer import CocoScorer
from siamdetr.inference.predictor import Predictor

_GROUPS = 20  # of images, each left out once
_NORMAL_95 = 1.96


@dataclass(frozen=True)
class ApComparison:
    """AP of both on the same labelled images, 0..1.

    Attributes:
        half_width: of the 95 % interval around `loss`; infinite if there are too few images.
    """

    pytorch: float
    exported: float
    images: int
    half_width: float = 0.0

    @property
    def loss(self) -> float:
        """The AP lost by the export; negative if it gained."""
        return self.pytorch - self.exported

    def exceeds(self, allowed: float) -> bool:
        """Whether the loss is significantly above what is allowed; NaN is."""
        return not self.loss - self.half_width <= allowed

    def failures(self, allowed: float, reference: str) -> list[str]:
        """The sentence for people where the loss exceeds what is allowed; else nothing."""
        if not self.exceeds(allowed):
            return []
        return [
            f"AP on {self.images} images is {self.exported:.4f}, {reference}'s is {self.pytorch:.4f} "
            f"(loss {self.loss:.4f} ± {self.half_width:.4f}, allowed: {allowed:g})"
        ]

    def is_conclusive(self, allowed: float) -> bool:
        """Whether the interval lies on one side of what is allowed."""
        return self.exceeds(allowed) or self.loss + self.half_width <= allowed


def compare_ap(reference: Predictor, exported: Predictor, truth: DetectionIndex) -> ApComparison:
    """AP of both, and the interval of their difference.

    The difference is paired: both see the same images, so what is hard about an image cancels. Its error comes from the
    jackknife over groups of images (Efron and Stein 1981, "The jackknife estimate of variance").

    Args:
        reference: PyTorch.
        exported: the file.
        truth: labelled images.
    """
    try:
        both = [detect(predictor, truth, workers=0) for predictor in (reference, exported)]
    except NonFiniteOutputError:  # NaN, which no tolerance allows
        return ApComparison(math.nan, math.nan, len(truth))
    pytorch, found = (scorer.summarize().ap for scorer in both)
    return ApComparison(pytorch, found, len(truth), _half_width(both[0], both[1]))


def _half_width(reference: CocoScorer, exported: CocoScorer) -> float:
    index = reference.index
    results = [scorer.results() for scorer in (reference, exported)]
    groups = min(_GROUPS, len(index))
    losses = []
    for group in range(groups):
        kept = np.array([image for image in range(len(index)) if image % groups != group], dtype=np.int64)
        part = index.subset(kept.tolist())
        if part.num_boxes:
            expected, found = (_ap(part, result) for result in results)
            losses.append(expected - found)
    if len(losses) < 2:
        return math.inf
    deviations = np.array(losses) - np.mean(losses)
    return float(_NORMAL_95 * np.sqrt((len(losses) - 1) / len(losses) * np.square(deviations).sum()))


def _ap(index: DetectionIndex, results: Results) -> float:
    scorer = CocoScorer(index)
    scorer.add_results(results.of_images(index.image_ids))
    return scorer.summarize().ap
