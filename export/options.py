"""The options of an export, for every file of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from siamdetr.errors import ExportError
from siamdetr.images.preprocessing import PreprocessingSpec, Size

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Resize = Literal["fixed", "letterbox"]
Sampling = Literal["gather", "grid"]
Triple = tuple[int, int, int]  # least, usual, most


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export.

    Attributes:
        precision: of the arithmetic inside the graph; inputs and outputs stay what they are. int8 needs images.
        resize: "fixed": every image is resized to `size`; "letterbox": it is fitted into `size` and padded, which a
            further input, `valid_sizes`, describes; None: the model's own preprocessing.
        size: (H, W) for `resize`; None: the model's own, a shortest side standing for a square.
        raw: two more outputs: `logits` [N, Q, C] and `fractions` [N, Q, 4] (cx, cy, w, h) of every query.
        attention: two more outputs: `attention` [N, heads, Q, h, w], the attention of the last decoder layer, and
            `queries` [N, K], the query of each detection.
        sampling: of deformable attention: "gather" looks cells up in a table, "grid" is GridSample.
        batch: smallest, usual and largest batch: the gate compares at these, and an engine is built for them.
        threshold: default threshold of the exported file; None: the model's own.
    Raises:
        ExportError: a batch of 0, batches out of order, an unknown precision, or a size without `resize`.
    """

    precision: Precision = "fp32"
    resize: Resize | None = None
    size: Size | None = None
    raw: bool = False
    attention: bool = False
    sampling: Sampling = "gather"
    batch: Triple = (1, 2, 5)
    threshold: float | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("precision", self.precision, get_args(Precision)),
            ("resize", self.resize, (None, *get_args(Resize))),
            ("sampling", self.sampling, get_args(Sampling)),
        ):
            if value not in known:
                raise ExportError(f"{name}: got '{value}', expected {' or '.join(filter(None, known))}")
        check_range("batch", self.batch)
        if self.size is not None and self.resize is None:
            raise ExportError(f"size: got {self.size} without resize; say resize='fixed' or 'letterbox' with it")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ExportError(f"threshold: got {self.threshold}, expected a score from 0 to 1")


def check_range(what: str, values: Triple) -> None:
    """Check that three numbers are at least 1 and in order.

    Raises:
        ExportError: they are not.
    """
    least, usual, most = values
    if not 1 <= least <= usual <= most:
        raise ExportError(f"{what}: got {least},{usual},{most}, expected three numbers 1 <= least <= usual <= most")


def exported_preprocessing(own: PreprocessingSpec, options: ExportOptions) -> PreprocessingSpec:
    """The preprocessing of the bundle: the model's own, unless `options.resize` names another."""
    if options.resize is None:
        return own
    size = options.size or (own.size if isinstance(own.size, tuple) else (own.size, own.size))
    return PreprocessingSpec(mode=options.resize, size=size, mean=own.mean, std=own.std)
