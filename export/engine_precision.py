"""Read the precision of an engine from its layers, and refuse one that was not requested."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from siamdetr.errors import ExportError
from siamdetr.export.options import Precision
from siamdetr.export.sessions import cuda_at_hand

_LEAST_HALF = 0.8  # lowest share of the multiplying layers
_LEAST_OF_FEWER = 0.9  # lowest share of the graph's own share, where the graph has fewer


@dataclass(frozen=True)
class LayerPrecision:
    """The output types of an engine's layers.

    Attributes:
        read_from: "engine": the inspector, after fusion; "network": the strongly typed network that went into the
            builder, where no engine can be opened (there is no GPU).
        multiplying: number of convolutions and matrix products with each output type.
        layers: the same for all layers with floating-point outputs.
    """

    read_from: Literal["engine", "network"]
    multiplying: dict[str, int]
    layers: dict[str, int]

    def share(self, precision: Precision) -> float:
        """The share of the multiplying layers in the requested half precision."""
        total = sum(self.multiplying.values())
        return self.multiplying.get({"fp16": "half", "bf16": "bf16"}.get(precision, "float"), 0) / max(1, total)


def check_realised(realised: LayerPrecision, precision: Precision, graph_share: float = 1.0) -> None:
    """Check that a half-precision engine really computes in half precision.

    Args:
        realised: of the engine.
        precision: of the graph.
        graph_share: share of the graph's multiplications that are half: less than usual where the gate demanded it.
    Raises:
        ExportError: too few of the engine's multiplications are half.
    """
    least = _LEAST_HALF if graph_share > _LEAST_HALF else _LEAST_OF_FEWER * graph_share
    if precision in ("fp16", "bf16") and realised.share(precision) < least:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(realised.multiplying.items()))
        raise ExportError(
            f"engine: asked for {precision}, but only {realised.share(precision):.0%} of the multiplying layers are ({counts}; expected "
            f"{least:.0%}, read from the {realised.read_from}); export the graph with --precision {precision}"
        )


def read_network(trt: Any, network: Any) -> LayerPrecision:
    """The types of a parsed network, which its engine keeps: it is strongly typed."""
    kinds = {
        trt.LayerType.CONVOLUTION,
        trt.LayerType.DECONVOLUTION,
        trt.LayerType.MATRIX_MULTIPLY,
        trt.LayerType.EINSUM,
    }
    multiplying: Counter[str] = Counter()
    layers: Counter[str] = Counter()
    names = {trt.float32: "float", trt.float16: "half", trt.bfloat16: "bf16", trt.int8: "int8"}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type in (trt.LayerType.CONSTANT, trt.LayerType.SHAPE) or layer.num_outputs == 0:
            continue
        name = names.get(layer.get_output(0).dtype)
        if name is not None:
            layers[name] += 1
            multiplying[name] += layer.type in kinds
    return LayerPrecision("network", dict(+multiplying), dict(+layers))


def inspect_engine(trt: Any, logger: Any, plan: bytes) -> LayerPrecision | None:
    """The types that the engine reports; None if it cannot be opened."""
    if not cuda_at_hand():
        return None
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return None
    with contextlib.suppress(json.JSONDecodeError):
        text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        return read_inspector(json.loads(text))
    return None


def read_inspector(report: dict[str, Any]) -> LayerPrecision:
    """The types that the inspector's JSON names: of each layer, that of its first output.

    A layer multiplies when its kind, or what the builder remembers of its origin, says convolution, matrix product,
    gemm or attention.
    """
    multiplying: Counter[str] = Counter()
    layers: Counter[str] = Counter()
    for layer in report.get("Layers", []):
        outputs = layer.get("Outputs") if isinstance(layer, dict) else None
        if not outputs:
            continue
        name = _type_name(str(outputs[0].get("Format/Datatype", "")))
        if name is None:
            continue
        layers[name] += 1
        words = f"{layer.get('LayerType', '')} {layer.get('Name', '')} {layer.get('Metadata', '')}".lower()
        multiplying[name] += any(
            word in words for word in ("conv", "matmul", "gemm", "matrix_multiply", "mha", "attention")
        )
    return LayerPrecision("engine", dict(+multiplying), dict(+layers))


def _type_name(text: str) -> str | None:
    lower = text.lower()
    for word, name in (("bf16", "bf16"), ("bfloat16", "bf16"), ("half", "half"), ("fp16", "half"), ("int8", "int8")):
        if word in lower:
            return name
    return "float" if "float" in lower or "fp32" in lower else None
