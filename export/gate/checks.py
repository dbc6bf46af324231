"""The gate: compare an exported file with PyTorch; the verdict is written into the bundle.

Several batches and sizes; the same image twice in a batch; the batch reversed; and, where the images have labels,
COCO's AP of both, with the interval of their difference: a loss counts when it is more than chance. Boxes are compared
without regard to their order: a two-stage detector's queries change places when two proposals' scores are equal but for
rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from siamdetr.api import SiamDETR
from siamdetr.data.index import DetectionIndex
from siamdetr.export.gate.ap_comparison import ApComparison, compare_ap
from siamdetr.export.gate.difference import NO_DIFFERENCE, Difference, difference, worst
from siamdetr.export.gate.images import Samples, drawn_samples
from siamdetr.export.options import Precision, Triple
from siamdetr.images.preprocessing import Prepared, PreprocessingSpec, Size, preprocess, resized_size
from siamdetr.inference.predictor import Predictor, ScoredBoxes
from siamdetr.inference.pytorch import PyTorchPredictor, evaluating

Raw = tuple[NDArray[np.float32], NDArray[np.float32]]  # logits [N, Q, C], box fractions [N, Q, 4]
LEAST_COMPARED = 0.5  # share of the boxes that must be open to judgement


@dataclass(frozen=True)
class Tolerance:
    """The tolerances of a file of one precision, relative to PyTorch in float32.

    Attributes:
        scores: of a box that counts as matched.
        boxes: of a box that counts as matched, as a fraction of the image.
        matched: least share of matched boxes.
        logits: greatest difference of a logit; not checked for two-stage detectors.
        rows: between equal images of one batch, and between a batch and its reverse.
        ap: greatest loss of AP, 0..1.
    """

    scores: float
    boxes: float
    matched: float
    logits: float
    rows: float
    ap: float


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(scores=1e-4, boxes=1e-4, matched=1.0, logits=1e-3, rows=1e-5, ap=0.001),
    "fp16": Tolerance(scores=0.01, boxes=0.005, matched=0.98, logits=0.1, rows=1e-3, ap=0.003),
    "bf16": Tolerance(scores=0.05, boxes=0.02, matched=0.95, logits=0.5, rows=5e-3, ap=0.01),
    # The logit of a query that finds nothing may move far in eight bits; scores, boxes and AP say what that costs.
    "int8": Tolerance(scores=0.15, boxes=0.05, matched=0.8, logits=4.0, rows=1e-3, ap=0.01),
}


@dataclass(frozen=True)
class GateCheck:
    """One comparison: a batch of images of one size. Errors are the greatest of the batch."""

    batch_size: int
    height: int
    width: int
    score_error: float
    box_error: float  # fraction of the image
    matched: float  # share of the boxes with a counterpart within tolerance
    compared: float  # share of the boxes that could be judged
    row_error: float  # between the first and the last image, which are the same; 0 in a batch of one
    order_error: float  # between the batch and the same batch turned round
    logit_error: float | None = None  # None: not to be had, or of no meaning because queries may change places
    fraction_error: float | None = None  # of the boxes of all queries


@dataclass(frozen=True)
class GateReport:
    """All measurements of one file, and the verdict."""

    precision: Precision
    runtime: str  # what computed the exported file's answers
    source: str  # of the images
    checks: tuple[GateCheck, ...]
    ap: ApComparison | None = None

    @property
    def tolerance(self) -> Tolerance:
        """The tolerances at this precision."""
        return TOLERANCES[self.precision]

    @property
    def passed(self) -> bool:
        """Whether everything is within tolerance."""
        return not self.failures()

    @property
    def largest_error(self) -> float:
        """The greatest error of scores and boxes."""
        return max(max(check.score_error, check.box_error) for check in self.checks)

    def failures(self) -> list[str]:
        """The measurements out of tolerance, in words; empty if the file passed."""
        found = [text for check in self.checks for text in _failures(check, self.tolerance)]
        return found if self.ap is None else found + self.ap.failures(self.tolerance.ap, "PyTorch")

    def doubts(self) -> list[str]:
        """Questions that the images were too few to decide, each in words."""
        if self.ap is None or self.ap.is_conclusive(self.tolerance.ap):
            return []
        return [
            f"AP on {self.ap.images} images decides nothing: the loss is {self.ap.loss:.4f} ± {self.ap.half_width:.4f}, and "
            f"{self.tolerance.ap:g} is allowed; give more images (--images)"
        ]

    def to_json(self) -> dict[str, Any]:
        """The report as plain values, for the manifest."""
        ap = None if self.ap is None else {**asdict(self.ap), "loss": self.ap.loss}
        if ap is not None and not np.isfinite(ap["half_width"]):
            ap["half_width"] = None
        return {
            "verdict": "PASS" if self.passed else "FAIL",
            "precision": self.precision,
            "runtime": self.runtime,
            "images": self.source,
            "tolerance": asdict(self.tolerance),
            "checks": [asdict(check) for check in self.checks],
            "ap": ap,
            "failures": self.failures(),
            "doubts": self.doubts(),
        }


def _failures(check: GateCheck, allowed: Tolerance) -> list[str]:
    where = f"differs from PyTorch at batch {check.batch_size} of {check.height}×{check.width} pixels: "
    found = []
    if not (check.matched >= allowed.matched and check.compared >= LEAST_COMPARED):
        found.append(
            f"{where}{check.matched:.1%} of the boxes have a counterpart within {allowed.scores:g} (scores) and {allowed.boxes:g} of "
            f"the image (expected {allowed.matched:.0%}); scores differ by up to {check.score_error:.2g}, boxes by "
            f"{check.box_error:.2g}; {check.compared:.0%} could be judged"
        )
    if check.logit_error is not None and not check.logit_error <= allowed.logits:
        found.append(f"{where}logits differ by {check.logit_error:.2g} (allowed: {allowed.logits:g})")
    if not check.row_error <= allowed.rows:
        found.append(
            f"batch {check.batch_size}: equal images give boxes that differ by {check.row_error:.2g} (allowed: {allowed.rows:g})"
        )
    if not check.order_error <= allowed.rows:
        found.append(
            f"batch {check.batch_size}: images change their boxes by {check.order_error:.2g} when the batch is turned round "
            f"(allowed: {allowed.rows:g})"
        )
    return found


def run_gate(
    reference: Predictor,
    exported: Predictor,
    *,
    precision: Precision,
    runtime: str,
    batch: Triple = (1, 2, 5),
    sizes: Sequence[Size] | None = None,
    samples: Samples | None = None,
    truth: DetectionIndex | None = None,
    raw: Callable[[Prepared], tuple[Raw, Raw]] | None = None,
) -> GateReport:
    """Compare an exported file with the model that it came from.

    Args:
        reference: the PyTorch model with the file's preprocessing (`pytorch_reference`).
        exported: the file, opened.
        precision: whose tolerances apply.
        runtime: what runs `exported`, for the record.
        batch: least, usual and largest batch; the last image of a batch is the first one again.
        sizes: (H, W) for each of the three; None: the full size, and two smaller ones that no stride divides.
        samples: images to compare on; None: patterns drawn by a fixed seed.
        truth: labelled images on which the AP of both is compared; None: it is not.
        raw: logits and boxes of all queries, of the reference and of the file; None: they are not compared.
    """
    samples = samples or drawn_samples()
    spec = exported.preprocessing
    checker = _Checker(reference, exported, TOLERANCES[precision], raw)
    checks = [
        checker.check(_batch(samples, number, size, spec))
        for number, size in zip(batch, sizes or check_sizes(spec), strict=True)
    ]
    ap = None
    if truth is not None:
        ap = compare_ap(reference, exported, truth)
    return GateReport(precision, runtime, samples.source, tuple(checks), ap)


def pytorch_reference(model: SiamDETR, spec: PreprocessingSpec) -> PyTorchPredictor:
    """The model with an exported file's preprocessing, which may be another than its own.

    On the CPU, wherever the model is: a GPU may round the factors of its products to 10 bits (TF32), which is no
    reference.
    """
    detector = model.detector if model.device.type == "cpu" else copy.deepcopy(model.detector).cpu()
    return PyTorchPredictor(detector, model.class_names, spec)


def pytorch_raw(reference: PyTorchPredictor, batch: Prepared) -> Raw:
    """Logits and boxes of the last decoder layer."""
    with evaluating(reference.detector), torch.inference_mode():
        outputs = reference.forward(batch)
    return outputs.logits[-1].float().cpu().numpy(), outputs.boxes[-1].float().cpu().numpy()


def check_sizes(spec: PreprocessingSpec) -> list[Size]:
    """(H, W) of the three comparisons: full; about half, odd; about a third, odd, in portrait format."""
    full = spec.size if isinstance(spec.size, tuple) else resized_size((480, 640), spec)
    height, width = full
    half = max(65, height // 2 | 1), max(87, width // 2 | 1)
    third = max(87, width // 3 | 1), max(65, height // 3 | 1)
    return [full, half, third]


@dataclass(frozen=True)
class _Checker:
    reference: Predictor
    exported: Predictor
    allowed: Tolerance
    raw: Callable[[Prepared], tuple[Raw, Raw]] | None

    def check(self, batch: Prepared) -> GateCheck:
        """Every comparison on one batch."""
        number, last = len(batch), len(batch) - 1
        expected, found = self.reference.predict_batch(batch), self.exported.predict_batch(batch)
        between = worst([self._difference(expected, found, batch, row) for row in range(number)])
        same = order = NO_DIFFERENCE
        if number > 1:
            same = self._difference(found, found, batch, 0, other_row=last, exact=True)
            turned = self.exported.predict_batch(_turned(batch))
            order = worst(
                [self._difference(found, turned, batch, row, other_row=last - row, exact=True) for row in range(number)]
            )
        logits, fractions = self._raw_errors(batch)
        return GateCheck(
            batch_size=number,
            height=batch.images.shape[2],
            width=batch.images.shape[3],
            score_error=between.score,
            box_error=between.box,
            matched=between.matched,
            compared=between.compared,
            row_error=max(same.score, same.box),
            order_error=max(order.score, order.box),
            logit_error=logits,
            fraction_error=fractions,
        )

    def _difference(
        self,
        a: ScoredBoxes,
        b: ScoredBoxes,
        batch: Prepared,
        row: int,
        *,
        other_row: int | None = None,
        exact: bool = False,
    ) -> Difference:
        height, width = batch.original_sizes[row].tolist()
        scores, boxes = (self.allowed.rows,) * 2 if exact else (self.allowed.scores, self.allowed.boxes)
        return difference(a, b, row, (height, width), scores=scores, boxes=boxes, other_row=other_row)

    def _raw_errors(self, batch: Prepared) -> tuple[float | None, float | None]:
        if self.raw is None:
            return None, None
        expected, found = self.raw(batch)
        logits, fractions = (
            float(np.abs(a - b).max()) if a.shape == b.shape else np.inf for a, b in zip(expected, found, strict=True)
        )
        return logits, fractions


def _turned(batch: Prepared) -> Prepared:
    padding = None if batch.padding is None else batch.padding[::-1].copy()
    return Prepared(batch.images[::-1].copy(), padding, batch.original_sizes[::-1].copy(), batch.sizes[::-1].copy())


def _batch(samples: Samples, number: int, size: Size, spec: PreprocessingSpec) -> Prepared:
    """Images of one size, the last the same as the first."""
    images = samples.images
    chosen = [images[i % len(images)] for i in range(number - 1)]
    mode: Literal["fixed", "letterbox"] = "letterbox" if spec.mode == "letterbox" else "fixed"
    return preprocess([*chosen, images[0]], PreprocessingSpec(mode=mode, size=size, mean=spec.mean, std=spec.std))
