"""The graphs that an export offers to its gate, each with more in float32 than the rejected one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import onnx

from siamdetr.export.gate.images import Samples
from siamdetr.export.int8.quantize import calibrated, check_calibration, to_int8
from siamdetr.export.int8.sensitivity import parts_by_harm
from siamdetr.export.options import Precision
from siamdetr.export.precision import MULTIPLIERS, HalfPrecision, before_selection, to_half
from siamdetr.images.preprocessing import PreprocessingSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """A graph in its final precision, with all outputs.

    Attributes:
        graph: that is written.
        computable: what ONNX Runtime computes for the gate: the same graph, or its emulation.
        reduced: number of its multiplying nodes in the precision.
        multipliers: number of all of them.
    """

    graph: onnx.ModelProto
    computable: onnx.ModelProto
    reduced: int
    multipliers: int


def attempts(
    traced: onnx.ModelProto, precision: Precision, samples: Samples | None, spec: PreprocessingSpec, folder: Path
) -> Iterator[Attempt]:
    """The graph in a precision; ask for the next one if the gate rejects it.

    Args:
        traced: float32, with all outputs; not changed.
        precision: of the export.
        samples: images to measure int8's scales on.
        spec: preprocessing of the images.
        folder: for temporary files.
    Raises:
        ExportError: int8 without images, or a graph that cannot be converted.
    """
    if precision == "fp32":
        multipliers = sum(node.op_type in MULTIPLIERS for node in traced.graph.node)
        yield Attempt(traced, traced, multipliers, multipliers)
    elif precision == "int8":
        yield from _in_int8(traced, check_calibration(samples), spec, folder)
    else:
        yield _in_half(traced, precision, frozenset())
        ranking = before_selection(traced)
        if ranking:
            logger.warning(
                "%s does not pass the gate; next with everything in float32 that the choice of the queries depends on: rounding "
                "may swap two proposals of nearly equal score",
                precision,
            )
            yield _in_half(traced, precision, ranking)


def _in_half(traced: onnx.ModelProto, precision: HalfPrecision, kept: frozenset[str]) -> Attempt:
    half = to_half(traced, precision, kept=kept)
    computable = to_half(traced, "bf16", emulate=True, kept=kept).graph if precision == "bf16" else half.graph
    return Attempt(half.graph, computable, half.half_multipliers, half.multipliers)


def _in_int8(traced: onnx.ModelProto, samples: Samples, spec: PreprocessingSpec, folder: Path) -> Iterator[Attempt]:
    source = calibrated(traced, samples.images, spec)
    small = to_int8(source, folder)
    yield Attempt(small.graph, small.graph, small.quantized, small.multipliers)
    parts, number = parts_by_harm(source, samples.images, spec, folder), 1
    while number <= len(parts) // 2:
        logger.warning(
            "int8 does not pass the gate; next with %d of %d parts of the network in float32, where eight bits change the logits most",
            number,
            len(parts),
        )
        small = to_int8(source, folder, kept=set(chain.from_iterable(parts[:number])))
        yield Attempt(small.graph, small.graph, small.quantized, small.multipliers)
        number *= 2
