"""Half precision as casts in the graph, so that every runtime computes the same.

Multiplications (convolutions, projections, the weighted sum of attention) run in half precision, as do operations that
only move or add half-precision numbers. All others are islands of float32: norms, softmax and the scores that go into
it, sine positions, inverse sigmoid, references, the last projection to coordinates, sums of a layer and its shortcut.
An island needs no name: it begins where an operation needs float32 and ends where the next one multiplies.

`emulate` returns a float32 graph that rounds wherever the half-precision graph does. ONNX Runtime has no bfloat16 on
the CPU, where such a file is compared in this way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from siamdetr.errors import ExportError

HalfPrecision = Literal["fp16", "bf16"]

_TYPES: dict[HalfPrecision, tuple[int, type]] = {
    "fp16": (TensorProto.FLOAT16, np.float16),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}
# The first whose convolutions take bfloat16. Of what our graphs hold only GridSample has changed its meaning since opset 18.
_BFLOAT16_OPSET = 22
MULTIPLIERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Operations that move, select, add or clip numbers, and are as exact in half precision as their inputs.
_FOLLOWERS = frozenset(
    {
        "Add", "AveragePool", "Clip", "Concat", "Div", "Erf", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Gelu",
        "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Max", "MaxPool", "Min", "Mul", "Neg", "PRelu", "Pad", "Relu",
        "Reshape", "Slice", "Split", "Squeeze", "Sub", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
_PASSED_THROUGH = frozenset(
    {
        "Add",
        "Concat",
        "Div",
        "Gather",
        "Identity",
        "Mul",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Sub",
        "Unsqueeze",
        "Where",
    }
)
# Columns of a projection to a point, a size or a box; a class head of as many columns stays float32 as well, which costs nothing.
_COORDINATES = (2, 4)


@dataclass(frozen=True)
class HalfGraph:
    """A graph with casts, and the share of half-precision operations."""

    graph: onnx.ModelProto
    half_multipliers: int
    multipliers: int


def to_half(
    graph: onnx.ModelProto, precision: HalfPrecision, *, emulate: bool = False, kept: frozenset[str] = frozenset()
) -> HalfGraph:
    """Convert the multiplications of a float32 graph to half precision.

    Args:
        graph: of opset 18, its weights inside; not changed. Inputs and outputs keep their types.
        precision: "fp16" or "bf16".
        emulate: keep every type, and round where the half graph would.
        kept: names of further multiplying nodes that stay float32, besides `islands`.
    Raises:
        ExportError: bfloat16 with GridSample, because no opset has both in the form that we need.
    """
    if precision == "bf16" and any(node.op_type == "GridSample" for node in graph.graph.node):
        raise ExportError(
            "bf16: got a graph with GridSample, which TensorRT misreads in the opset that bf16 needs; take --sampling gather"
        )
    return _Caster(graph, precision, emulate=emulate, kept=kept).run()


def islands(graph: onnx.ModelProto) -> frozenset[str]:
    """Names of multiplying nodes that must stay float32: scores of a softmax, projections to coordinates."""
    makers = {name: node for node in graph.graph.node for name in node.output}
    weights = {weight.name: weight for weight in graph.graph.initializer}
    found = {node.name for node in graph.graph.node if node.op_type == "MatMul" and _to_coordinates(node, weights)}
    for node in graph.graph.node:
        if node.op_type == "Softmax":
            found.update(scores.name for scores in scores_of(node.input[0], makers) if not _weighted(scores, weights))
    return frozenset(found)


def before_selection(graph: onnx.ModelProto) -> frozenset[str]:
    """Names of the multiplying nodes that the selection of queries depends on; none without a selection.

    In a two-stage detector these are backbone, encoder and the heads of its proposals. Their rounding may swap two
    proposals of nearly equal score, which matters where a query's content depends on its rank (DINO).
    """
    makers = {name: node for node in graph.graph.node for name in node.output}
    best = [node for node in graph.graph.node if node.op_type == "TopK"]
    needed = [_ancestors(node, makers) for node in best]
    selections = [own for node, own in zip(best, needed, strict=True) if any(node.name in other for other in needed)]
    names = frozenset().union(*selections)
    return frozenset(node.name for node in graph.graph.node if node.op_type in MULTIPLIERS and node.name in names)


def _ancestors(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> set[str]:
    """Names of the nodes that a node's inputs are computed by."""
    waiting, found = list(node.input), set()
    while waiting:
        maker = makers.get(waiting.pop())
        if maker is not None and maker.name not in found:
            found.add(maker.name)
            waiting.extend(maker.input)
    return found


def _to_coordinates(node: onnx.NodeProto, weights: dict[str, TensorProto]) -> bool:
    return node.input[1] in weights and weights[node.input[1]].dims[-1] in _COORDINATES


def _weighted(node: onnx.NodeProto, weights: dict[str, TensorProto]) -> bool:
    """Whether one factor is a weight, as in a projection, but not in the product of queries and keys."""
    return any(name in weights for name in node.input)


def scores_of(value: str, makers: dict[str, onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    """The matrix products from which a value follows by additions and scalings only.

    Args:
        value: its name, such as the input of a softmax.
        makers: the node that makes each value.
    """
    waiting, seen = [value], set()
    while waiting:
        name = waiting.pop()
        node = makers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type == "MatMul":
            yield node
        elif node.op_type in _PASSED_THROUGH:
            waiting.extend(node.input)


class _Caster:
    """One conversion. `self._half` holds the names of the values that are half in the new graph."""

    def __init__(
        self, graph: onnx.ModelProto, precision: HalfPrecision, *, emulate: bool, kept: frozenset[str]
    ) -> None:
        self._source = graph
        self._code, self._numpy = _TYPES[precision]
        self._largest = float(ml_dtypes.finfo(self._numpy).max)  # type: ignore[no-untyped-call]
        self._emulate = emulate
        self._weights = _constants(graph)
        self._islands = islands(graph) | kept
        self._floats = _float_values(graph)
        self._half: set[str] = set()
        self._nodes: list[onnx.NodeProto] = []
        self._casts: dict[tuple[str, bool], str] = {}
        self._half_weights: dict[str, TensorProto] = {}

    def run(self) -> HalfGraph:
        """The new graph."""
        multipliers = half = 0
        for node in self._source.graph.node:
            if node.op_type == "Constant":
                continue  # among the weights now
            is_half = self._runs_in_half(node)
            if node.op_type in MULTIPLIERS:
                multipliers, half = multipliers + 1, half + is_half
            self._add(node, is_half)
        model = onnx.ModelProto()
        model.CopyFrom(self._source)
        if self._code == TensorProto.BFLOAT16 and not self._emulate:
            model.opset_import[0].version = _BFLOAT16_OPSET
        outputs = [value.name for value in model.graph.output]
        self._restore_outputs(outputs)
        del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
        model.graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in node.input}
        everything = [*self._weights.values(), *self._half_weights.values()]
        model.graph.initializer.extend(weight for weight in everything if weight.name in used)
        return HalfGraph(model, half, multipliers)

    def _runs_in_half(self, node: onnx.NodeProto) -> bool:
        floats = [name for name in node.input if name in self._floats]
        if not floats or any(not self._fits(name) for name in floats):
            return False
        if node.op_type in MULTIPLIERS:
            return node.name not in self._islands
        computed = [name for name in floats if name not in self._weights]
        follows = node.op_type in _FOLLOWERS or self._is_gate(node)
        return follows and bool(computed) and all(name in self._half for name in computed)

    def _is_gate(self, node: onnx.NodeProto) -> bool:
        """Whether a sigmoid only scales a value (SiLU, squeeze and excitation).

        Other sigmoids make scores and references.
        """
        if node.op_type != "Sigmoid":
            return False
        users = [user for user in self._source.graph.node if node.output[0] in user.input]
        return bool(users) and all(user.op_type == "Mul" for user in users)

    def _fits(self, name: str) -> bool:
        """Whether a value is within the range of half precision, if it is constant; else True."""
        if name not in self._weights:
            return True
        values = numpy_helper.to_array(self._weights[name])
        return values.size == 0 or bool(np.abs(values).max() <= self._largest)

    def _add(self, node: onnx.NodeProto, is_half: bool) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(self._as(name, is_half) if name in self._floats else name for name in node.input)
        self._nodes.append(copy)
        outputs = [name for name in node.output if name in self._floats] if is_half else []
        self._half.update(outputs)
        if self._emulate:
            for name in outputs:
                index = list(copy.output).index(name)
                copy.output[index] = f"{name}_unrounded"
                self._round(copy.output[index], name)

    def _as(self, name: str, half: bool) -> str:
        """The name of a float value in the given precision; each cast is made once."""
        if (name in self._half) == half:
            return name
        key = (name, half)
        if key not in self._casts:
            self._casts[key] = self._cast(name, half)
        return self._casts[key]

    def _cast(self, name: str, half: bool) -> str:
        new = f"{name}_{'half' if half else 'float'}"
        if name in self._weights:
            self._half_weights[new] = self._half_weight(self._weights[name], new)
        elif self._emulate and not half:
            return name
        elif self._emulate:
            self._round(name, new)
        else:
            target = self._code if half else TensorProto.FLOAT
            self._nodes.append(helper.make_node("Cast", [name], [new], name=f"cast_{new}", to=target))
        return new

    def _half_weight(self, weight: TensorProto, name: str) -> TensorProto:
        values: NDArray[np.generic] = numpy_helper.to_array(weight).astype(self._numpy)
        if self._emulate:
            return numpy_helper.from_array(values.astype(np.float32), name)
        return helper.make_tensor(name, self._code, list(weight.dims), values.tobytes(), raw=True)

    def _round(self, name: str, new: str) -> None:
        between = f"{new}_rounded"
        self._nodes.append(helper.make_node("Cast", [name], [between], name=f"round_{between}", to=self._code))
        self._nodes.append(helper.make_node("Cast", [between], [new], name=f"unround_{new}", to=TensorProto.FLOAT))

    def _restore_outputs(self, outputs: list[str]) -> None:
        """Keep names and types of outputs: a half-precision output is renamed inside and cast at the end."""
        for name in outputs:
            if name not in self._half or self._emulate:
                continue
            inner = f"{name}_inner"
            for node in self._nodes:
                for index, value in enumerate(node.input):
                    if value == name:
                        node.input[index] = inner
                for index, value in enumerate(node.output):
                    if value == name:
                        node.output[index] = inner
            self._nodes.append(helper.make_node("Cast", [inner], [name], name=f"cast_{name}", to=TensorProto.FLOAT))


def _constants(graph: onnx.ModelProto) -> dict[str, TensorProto]:
    """Initializers and the values of Constant nodes, by name."""
    found = {weight.name: weight for weight in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type == "Constant":
            attribute = node.attribute[0]
            value = helper.get_attribute_value(attribute)
            array = numpy_helper.to_array(value) if attribute.name == "value" else _plain(attribute.name, value)
            found[node.output[0]] = numpy_helper.from_array(np.asarray(array), node.output[0])
    return found


def _plain(kind: str, value: object) -> NDArray[np.generic]:
    return np.array(value, dtype=np.float32 if kind.startswith("value_float") else np.int64)


def _float_values(graph: onnx.ModelProto) -> frozenset[str]:
    """Names of all float32 values."""
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    typed = [*inferred.input, *inferred.output, *inferred.value_info]
    names = {value.name for value in typed if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return frozenset(
        names | {name for name, weight in _constants(graph).items() if weight.data_type == TensorProto.FLOAT}
    )
