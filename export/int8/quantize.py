"""Eight-bit integers: measured scales, written as QuantizeLinear and DequantizeLinear.

Symmetric, with one scale per channel for weights and one per tensor for activations, as TensorRT and OpenVINO need.
Convolutions and projections become int8; attention's own products, projections to coordinates and the class head stay
float32. Dynamic quantisation is not offered: TensorRT reads none of its operators.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

from siamdetr.errors import ExportError
from siamdetr.export.gate.images import Samples
from siamdetr.export.int8.calibrate import Ranges, activation_names, feeds_of, measure_ranges
from siamdetr.export.precision import MULTIPLIERS, islands, scores_of
from siamdetr.images.preprocessing import ImageLike, PreprocessingSpec


@dataclass(frozen=True)
class QuantizedGraph:
    """A graph with integer arithmetic, and the share of integer operations."""

    graph: onnx.ModelProto
    quantized: int
    multipliers: int


@dataclass(frozen=True)
class Calibrated:
    """A float32 graph, and what its quantisation needs.

    Attributes:
        graph: with an output `logits`.
        layers: names of the nodes that tolerate eight bits (`quantizable`), in the graph's order.
        ranges: of their activations.
    """

    graph: onnx.ModelProto
    layers: tuple[str, ...]
    ranges: Ranges


def calibrated(graph: onnx.ModelProto, images: Sequence[ImageLike], spec: PreprocessingSpec) -> Calibrated:
    """Measure the ranges of a graph's activations.

    Args:
        graph: float32, with an output `logits`; not changed.
        images: typical images; every range is measured over all of them.
        spec: preprocessing of these images.
    Raises:
        ExportError: nothing in the graph can be quantised.
    """
    layers = quantizable(graph)
    if not layers:
        raise ExportError("int8: nothing in the graph could be quantised; export it as fp32 or fp16")
    ranges = measure_ranges(graph, activation_names(graph, layers), feeds_of(graph, images, spec))
    return Calibrated(graph, tuple(layers), ranges)


def to_int8(source: Calibrated, folder: Path, kept: Collection[str] = ()) -> QuantizedGraph:
    """Quantise a graph.

    Args:
        source: the graph and its ranges.
        folder: for temporary files.
        kept: of its layers, those that stay float32.
    """
    chosen = [name for name in source.layers if name not in kept]
    ranges = {name: _symmetric(*extremes) for name, extremes in source.ranges.items()}
    float32, target = folder / "float.onnx", folder / "int8.onnx"
    onnx.save(source.graph, float32)
    with _quiet():
        quantizer = QDQQuantizer(
            load_model_with_shape_infer(float32),
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
            nodes_to_quantize=chosen,
            nodes_to_exclude=[],
            op_types_to_quantize=sorted(MULTIPLIERS),
            # TensorRT reads no biases in int32.
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(str(target), False)
    quantized = onnx.load(target)
    for file in (float32, target):
        file.unlink()
    del quantized.graph.value_info[:]
    multipliers = sum(node.op_type in MULTIPLIERS for node in source.graph.graph.node)
    return QuantizedGraph(quantized, len(chosen), multipliers)


def _symmetric(lowest: float, highest: float) -> tuple[Any, Any]:
    bound = np.float32(max(abs(lowest), abs(highest)))
    return -bound, bound


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
    """Names of the convolutions and projections that tolerate eight bits.

    Class scores and coordinates stay float32: every layer of the heads that end in coordinates, and the sampling
    offsets of deformable attention, where an error moves a point by whole cells of a fine map.
    """
    makers = {name: node for node in graph.graph.node for name in node.output}
    weights = {weight.name for weight in graph.graph.initializer}
    coordinates = islands(graph)
    kept = {node.name for node in scores_of("logits", makers)} | coordinates
    for node in graph.graph.node:
        if node.op_type == "Floor":  # of a sampling point, on its way to a cell
            kept.update(offsets.name for offsets in scores_of(node.input[0], makers))
        elif node.name in coordinates:
            kept.update(_layers_before(node, makers, weights))
    return [
        node.name
        for node in graph.graph.node
        if node.op_type in MULTIPLIERS and node.input[1] in weights and node.name not in kept
    ]


def _layers_before(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], weights: set[str]) -> Iterator[str]:
    """Names of the projections of a head before its last one; between them are only biases and ReLU."""
    before = makers.get(node.input[0])
    while before is not None and (before.op_type == "Relu" or any(name in weights for name in before.input)):
        if before.op_type in MULTIPLIERS:
            yield before.name
        elif before.op_type not in ("Relu", "Add"):
            return
        before = next((makers[name] for name in before.input if name in makers), None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser's advice on the root logger; its result is measured afterwards."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
