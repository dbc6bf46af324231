"""Class imbalance, and splits that differ from the training split by more than chance.

Images are the units that are counted, since the objects of one image are alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from siamdetr.data.index import DetectionIndex
from siamdetr.data.remarks import Remark
from siamdetr.data.splits import common_name

RARE = 100  # times fewer boxes than the most frequent class
LEAST_RATIO = 1.5  # between two splits; less is of no matter, however certain
CHANCE = 1e-3  # of a false finding, over all comparisons of two splits together


def imbalance(parts: Mapping[str, DetectionIndex]) -> Iterator[Remark]:
    """Rare classes of the training split, and classes without a box in a split for scoring."""
    training = _training_part(parts)
    if training is None:
        return
    name, part = training
    counts = part.class_counts()
    for label in np.flatnonzero((counts > 0) & (counts * RARE < counts.max(initial=0))):
        what = f"{counts[label]:,} boxes, the most frequent class has {counts.max():,}"
        yield Remark("rare-class", name, f"class '{part.class_names[label]}'", what)
    for other, scored in parts.items():
        if other == name or not scored.num_boxes:
            continue
        there = dict(zip(scored.class_names, scored.class_counts().tolist(), strict=True))
        for label in np.flatnonzero(counts):
            if not there.get(part.class_names[label]):
                what = f"{counts[label]:,} boxes in '{name}'"
                yield Remark("unscored-class", other, f"class '{part.class_names[label]}'", what)


def skew(parts: Mapping[str, DetectionIndex]) -> Iterator[Remark]:
    """Differences between a split and the training split.

    Compared are the share of images with each class, and the sizes of objects and images.
    """
    training = _training_part(parts)
    if training is None:
        return
    name, part = training
    for other, scored in parts.items():
        if other != name and scored.num_boxes:
            for where, what in _skews(part, scored):
                yield Remark("split-skew", other, where, f"{what} in '{name}'")


def _training_part(parts: Mapping[str, DetectionIndex]) -> tuple[str, DetectionIndex] | None:
    return next(((n, part) for n, part in parts.items() if common_name(n) == "train" and part.num_boxes), None)


def _skews(training: DetectionIndex, other: DetectionIndex) -> list[tuple[str, str]]:
    """(quantity, figures) of every difference that is large and significant."""
    common = [name for name in training.class_names if name in other.class_names]
    level = CHANCE / (len(common) + 2)  # Bonferroni
    found = []
    for class_name in common:
        with_class = [int(_images_with(part, class_name).sum()) for part in (other, training)]
        shares = with_class[0] / len(other), with_class[1] / len(training)
        table = np.array([[with_class[0], len(other) - with_class[0]], [with_class[1], len(training) - with_class[1]]])
        if all(with_class) and _ratio(*shares) >= LEAST_RATIO and stats.fisher_exact(table).pvalue < level:
            found.append((f"class '{class_name}'", f"in {shares[0]:.0%} of the images, {shares[1]:.0%}"))
    for what, measure in (("objects' size", _object_sizes), ("images' size", _image_sizes)):
        a, b = measure(other), measure(training)
        if not len(a) or not len(b):
            continue
        medians = float(np.median(a)), float(np.median(b))
        if _ratio(*medians) >= LEAST_RATIO and stats.ks_2samp(a, b).pvalue < level:
            found.append((what, f"median {medians[0]:.0f} pixels, {medians[1]:.0f}"))
    return found


def _ratio(a: float, b: float) -> float:
    return max(a, b) / min(a, b) if min(a, b) > 0 else np.inf


def _images_with(part: DetectionIndex, class_name: str) -> NDArray[np.bool_]:
    """[N] whether an image has an object of the class."""
    label = part.class_names.index(class_name)
    of_box = np.repeat(np.arange(len(part)), part.box_counts())
    return np.bincount(of_box[part.labels == label], minlength=len(part)) > 0


def _object_sizes(part: DetectionIndex) -> NDArray[np.float64]:
    """The median object size of each image with objects: the square root of the area, pixels."""
    sides = np.sqrt(part.areas.astype(np.float64))
    images = np.flatnonzero(part.box_counts())
    return np.array([np.median(sides[part.box_slice(int(image))]) for image in images])


def _image_sizes(part: DetectionIndex) -> NDArray[np.float64]:
    """The longer sides of the images whose size is known, pixels."""
    longer: NDArray[np.float64] = part.sizes.max(axis=1, initial=0).astype(np.float64)
    return longer[longer > 0]
