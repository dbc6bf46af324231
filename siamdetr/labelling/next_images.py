"""Choose the unlabelled images to label next.

They are uncertain for the model, and unlike the images chosen before.

The score of an image is uncertainty x novelty. Uncertainty is that of its most doubtful box, 1 - |2 score - 1|; novelty
is the distance to the nearest image that is labelled or chosen already, in features of the pretrained encoder. Images
are chosen one by one, each time the best (the greedy core-set of Sener & Savarese 2018, arXiv:1708.00489, §4.1,
weighted by uncertainty).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from siamdetr.inference.features import features_of_files
from siamdetr.inference.pytorch import PyTorchPredictor
from siamdetr.labelling.prelabels import Prelabel
from siamdetr.system.progress import Progress

DUPLICATE = 1e-3  # cosine distance below which two images count as one
_LEAST_UNCERTAINTY = 0.05  # so that an image in which nothing is found can still be chosen for its novelty


@dataclass(frozen=True)
class Candidate:
    """An image to label.

    Attributes:
        position: in the list of images.
        score: uncertainty x novelty when it was chosen.
        uncertainty: in [0, 1].
        novelty: cosine distance to the nearest labelled or chosen image, in [0, 2].
    """

    position: int
    score: float
    uncertainty: float
    novelty: float


def uncertainty_of(scores: NDArray[np.float32]) -> float:
    """Uncertainty of an image's least certain box: 1 at a score of .5, 0 at 0 and 1; 0 without boxes."""
    return float((1 - np.abs(2 * scores - 1)).max()) if len(scores) else 0.0


def choose_next(
    features: NDArray[np.float32],
    uncertainty: Sequence[float],
    count: int,
    *,
    labelled: NDArray[np.float32] | None = None,
) -> list[Candidate]:
    """Choose images one by one.

    Args:
        features: [N, F] of the unlabelled images; their norm is ignored.
        uncertainty: N values in [0, 1].
        count: how many at most; duplicates of labelled or chosen images are left out.
        labelled: [M, F] features of images that have labels.
    Returns:
        The chosen images, best first.
    Raises:
        ValueError: there are not as many uncertainties as features.
    """
    if len(features) != len(uncertainty):
        raise ValueError(f"choose_next: got {len(features)} images and {len(uncertainty)} uncertainties; give one each")
    unit = _unit(features)
    weight = np.maximum(np.asarray(uncertainty, dtype=np.float32), _LEAST_UNCERTAINTY)
    distance = np.full(len(unit), 1.0, dtype=np.float32)
    if labelled is not None and len(labelled):
        distance = 1 - (unit @ _unit(labelled).T).max(1)
    chosen: list[Candidate] = []
    while len(chosen) < min(count, len(unit)):
        score = np.where(distance > DUPLICATE, weight * distance, -1.0)
        best = int(score.argmax())
        if score[best] < 0:
            break
        chosen.append(Candidate(best, float(score[best]), float(uncertainty[best]), float(distance[best])))
        distance = np.minimum(distance, 1 - unit @ unit[best])
        distance[best] = 0.0
    return chosen


def next_images(
    predictor: PyTorchPredictor,
    prelabels: Sequence[Prelabel],
    count: int,
    *,
    labelled: Sequence[Path] = (),
    progress: Progress | None = None,
) -> list[Prelabel]:
    """Choose among pre-labelled images by the encoder's features and the scores of their boxes.

    Args:
        predictor: of the model that made the pre-labels.
        prelabels: of the unlabelled images.
        count: how many at most.
        labelled: files of images that have labels.
        progress: called with (images done, images in all).
    Returns:
        The chosen ones, best first.
    """
    files = [*labelled, *(one.source for one in prelabels)]
    features = features_of_files(predictor, files, progress=progress)
    known, unknown = features[: len(labelled)], features[len(labelled) :]
    chosen = choose_next(unknown, [uncertainty_of(one.scores) for one in prelabels], count, labelled=known)
    return [prelabels[candidate.position] for candidate in chosen]


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit: NDArray[np.float32] = features / np.maximum(length, 1e-12)
    return unit
