"""Eight-bit integers: scales measured on images, written into the graph as QuantizeLinear and DequantizeLinear.

Symmetric, with one scale per channel for weights and one per tensor for activations, as TensorRT and OpenVINO need. Convolutions and
projections become int8; attention's own products, projections to coordinates and the class head stay float32. Dynamic
quantisation is not offered: TensorRT reads none of its operators.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from siamdetr.errors import ExportError
from siamdetr.export.gate_images import Samples
from siamdetr.export.precision import MULTIPLIERS, islands, scores_of
from siamdetr.export.runtime import feed_of
from siamdetr.export.sessions import Array
from siamdetr.images.preprocessing import ImageLike, PreprocessingSpec, preprocess


@dataclass(frozen=True)
class QuantizedGraph:
    """A graph with integer arithmetic, and the share of it."""

    graph: onnx.ModelProto
    quantized: int
    multipliers: int


def to_int8(
    graph: onnx.ModelProto, images: Sequence[ImageLike], spec: PreprocessingSpec, folder: Path
) -> QuantizedGraph:
    """Quantise a float32 graph.

    Args:
        graph: with an output `logits`; not changed.
        images: real ones, like those that the model will see; every activation's range is taken over all of them.
        spec: how they become its input.
        folder: for temporary files.
    Raises:
        ExportError: nothing could be quantised.
    """
    chosen = quantizable(graph)
    multipliers = sum(node.op_type in MULTIPLIERS for node in graph.graph.node)
    source, target = folder / "float.onnx", folder / "int8.onnx"
    onnx.save(graph, source)
    names = tuple(value.name for value in graph.graph.input)
    with _quiet():
        quantize_static(
            str(source),
            str(target),
            _Reader(images, spec, names),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=chosen,
            calibrate_method=CalibrationMethod.MinMax,
            # TensorRT reads no biases in int32.
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
    quantized = onnx.load(target)
    for file in (source, target):
        file.unlink()
    if not any(node.op_type == "QuantizeLinear" for node in quantized.graph.node):
        raise ExportError("int8: nothing in the graph could be quantised; export it as fp32 or fp16")
    del quantized.graph.value_info[:]
    return QuantizedGraph(quantized, len(chosen), multipliers)


def check_calibration(samples: Samples | None) -> Samples:
    """Return the samples, if there are any.

    Raises:
        ExportError: there are none.
    """
    if samples is None or not samples.images:
        raise ExportError(
            "int8: got no images, and the range of the activations is measured on real ones; give --data DIR (some dozens suffice)"
        )
    return samples


def quantizable(graph: onnx.ModelProto) -> list[str]:
    """Names of the convolutions and projections, except those sensitive to rounding: coordinates and class scores."""
    weights = {weight.name for weight in graph.graph.initializer}
    makers = {name: node for node in graph.graph.node for name in node.output}
    kept = islands(graph) | {node.name for node in scores_of("logits", makers)}
    return [
        node.name
        for node in graph.graph.node
        if node.op_type in MULTIPLIERS and node.input[1] in weights and node.name not in kept
    ]


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Feed one image after the other to the calibration."""

    def __init__(self, images: Sequence[ImageLike], spec: PreprocessingSpec, names: tuple[str, ...]) -> None:
        self._feeds: Iterator[dict[str, Array]] = (feed_of(preprocess([image], spec), names) for image in images)

    def get_next(self) -> dict[str, Array] | None:
        """The next feed; None after the last."""
        return next(self._feeds, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises on the root logger; what it made is measured afterwards."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
