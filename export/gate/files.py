"""The gate between any two files: boxes image by image, and the AP of both on the same labels.

Each file prepares the images its own way, so that files of different programs can be compared. Boxes are compared in
pixels of the original images by the rule of `difference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import ExportError
from siamdetr.export.gate.ap_comparison import ApComparison, compare_ap
from siamdetr.export.gate.checks import LEAST_COMPARED, TOLERANCES, Tolerance
from siamdetr.export.gate.difference import Difference, difference
from siamdetr.export.options import Precision
from siamdetr.images.preprocessing import load_image, preprocess
from siamdetr.inference.predictor import Predictor, Progress, ScoredBoxes, check_finite

LEAST = 0.05  # score from which boxes are judged: what is below is of no use to anybody


@dataclass(frozen=True)
class NamedFile:
    """An opened file with its name and its runtime."""

    name: str
    predictor: Predictor
    runtime: str


@dataclass(frozen=True)
class ImageDifference:
    """The difference between both files' boxes of one image."""

    image: Path
    boxes: tuple[int, int]  # of A and of B, from `LEAST` on
    difference: Difference


@dataclass(frozen=True)
class FileReport:
    """All measurements of two files, and the verdict.

    Attributes:
        a: name of the reference.
        b: name of the file that is judged.
        runtimes: what computed them.
        precision: whose tolerances apply.
        images: their differences.
        row_errors: of A and B: between the two rows of a batch that holds one image twice.
        classes: names that both files have; boxes of other classes are left out.
        ap: of both; None: no labels.
    """

    a: str
    b: str
    runtimes: tuple[str, str]
    precision: Precision
    images: tuple[ImageDifference, ...]
    row_errors: tuple[float, float]
    classes: tuple[str, ...]
    ap: ApComparison | None

    @property
    def tolerance(self) -> Tolerance:
        """The tolerances at this precision."""
        return TOLERANCES[self.precision]

    @property
    def passed(self) -> bool:
        """Whether everything is within tolerance."""
        return not self.failures()

    @property
    def matched(self) -> float:
        """Share of the boxes of all images that have a counterpart within tolerance."""
        return self._over_boxes([one.difference.matched for one in self.images])

    @property
    def compared(self) -> float:
        """Share of the boxes of all images that could be judged."""
        return self._over_boxes([one.difference.compared for one in self.images])

    def _over_boxes(self, shares: list[float]) -> float:
        """The mean of a share of each image, weighted by its boxes; 1 without boxes."""
        weights = np.array([sum(one.boxes) for one in self.images])
        return float((weights * np.array(shares)).sum() / weights.sum()) if weights.sum() else 1.0

    def failures(self) -> list[str]:
        """The measurements out of tolerance, in words; empty if B passed."""
        allowed, found = self.tolerance, []
        if self.matched < allowed.matched or self.compared < LEAST_COMPARED:
            found.append(
                f"{self.matched:.1%} of the boxes have a counterpart within {allowed.scores:g} (scores) and {allowed.boxes:g} of the "
                f"image (expected {allowed.matched:.0%}); {self.compared:.0%} could be judged"
            )
        for name, error in zip((self.a, self.b), self.row_errors, strict=True):
            if not error <= allowed.rows:
                found.append(
                    f"{name}: equal images of a batch give boxes that differ by {error:.2g} (allowed: {allowed.rows:g})"
                )
        return found if self.ap is None else found + self.ap.failures(allowed.ap, self.a)

    def to_json(self) -> dict[str, Any]:
        """Plain values; a figure that is not finite is None."""
        ap = None if self.ap is None else {**asdict(self.ap), "loss": self.ap.loss}
        return {
            "verdict": "PASS" if self.passed else "FAIL",
            "a": self.a,
            "b": self.b,
            "runtimes": list(self.runtimes),
            "precision": self.precision,
            "tolerance": asdict(self.tolerance),
            "matched": self.matched,
            "compared": self.compared,
            "row_errors": [_finite(error) for error in self.row_errors],
            "classes": list(self.classes),
            "ap": None if ap is None else {key: _finite(value) for key, value in ap.items()},
            "failures": self.failures(),
            "images": [
                {
                    "image": str(one.image),
                    "boxes": list(one.boxes),
                    **{key: _finite(value) for key, value in asdict(one.difference).items()},
                }
                for one in self.images
            ],
        }


def compare_files(
    a: NamedFile,
    b: NamedFile,
    images: Sequence[Path],
    *,
    precision: Precision = "fp16",
    truth: DetectionIndex | None = None,
    progress: Progress | None = None,
) -> FileReport:
    """Compare file B with A, the reference.

    Args:
        a: the reference.
        b: the file that is judged.
        images: at least one.
        precision: whose tolerances apply.
        truth: labelled images on which the AP of both is compared; None: it is not.
        progress: called with (images done, images in all).
    Raises:
        ExportError: the files have no class in common.
        NonFiniteOutputError: an output is NaN or infinite.
    """
    classes = tuple(name for name in a.predictor.class_names if name in b.predictor.class_names)
    if not classes:
        raise ExportError(
            f"{a.name} and {b.name} have no class in common: {list(a.predictor.class_names)} and {list(b.predictor.class_names)}"
        )
    allowed, found = TOLERANCES[precision], []
    for number, path in enumerate(images, start=1):
        image = load_image(path)
        both = [_answer(one.predictor, image, classes) for one in (a, b)]
        size = (image.height, image.width)
        apart = difference(both[0], both[1], 0, size, scores=allowed.scores, boxes=allowed.boxes, least=LEAST)
        counts = [int((answer.scores >= LEAST).sum()) for answer in both]
        found.append(ImageDifference(path, (counts[0], counts[1]), apart))
        if progress is not None:
            progress(number, len(images))
    first = load_image(images[0])
    return FileReport(
        a=a.name,
        b=b.name,
        runtimes=(a.runtime, b.runtime),
        precision=precision,
        images=tuple(found),
        row_errors=(_row_error(a.predictor, first, allowed), _row_error(b.predictor, first, allowed)),
        classes=classes,
        ap=None if truth is None else compare_ap(a.predictor, b.predictor, truth),
    )


def _answer(predictor: Predictor, image: Image.Image, classes: Sequence[str]) -> ScoredBoxes:
    """The boxes of one image whose class both files know, with labels in `classes`."""
    scored = predictor.predict_batch(preprocess([image], predictor.preprocessing))
    check_finite(scored, 0)
    places = {name: label for label, name in enumerate(classes)}
    common: NDArray[np.int64] = np.array([places.get(name, -1) for name in predictor.class_names], dtype=np.int64)
    labels = common[scored.labels[0]]
    kept = labels >= 0
    return ScoredBoxes(scores=scored.scores[:, kept], labels=labels[None, kept], boxes=scored.boxes[:, kept])


def _row_error(predictor: Predictor, image: Image.Image, allowed: Tolerance) -> float:
    """The greatest difference between the two rows of a batch that holds one image twice."""
    scored = predictor.predict_batch(preprocess([image, image], predictor.preprocessing))
    size = (image.height, image.width)
    apart = difference(scored, scored, 0, size, scores=allowed.rows, boxes=allowed.rows, other_row=1, least=LEAST)
    return max(apart.score, apart.box)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
