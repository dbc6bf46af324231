"""Ranges of activations, measured on images, for the tensors that get int8 scales.

It takes no more memory than an ordinary prediction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from siamdetr.export.runtime import feed_of
from siamdetr.export.sessions import Array
from siamdetr.images.preprocessing import ImageLike, PreprocessingSpec, preprocess

Ranges = Mapping[str, tuple[float, float]]
_LOW, _HIGH = "_lowest", "_highest"


def activation_names(graph: onnx.ModelProto, nodes: Sequence[str]) -> tuple[str, ...]:
    """Inputs and outputs of some nodes, without weights."""
    weights, chosen = {weight.name for weight in graph.graph.initializer}, set(nodes)
    names = [name for node in graph.graph.node if node.name in chosen for name in (*node.input[:1], *node.output)]
    return tuple(dict.fromkeys(name for name in names if name and name not in weights))


def feeds_of(
    graph: onnx.ModelProto, images: Iterable[ImageLike], spec: PreprocessingSpec
) -> Iterator[dict[str, Array]]:
    """The graph's inputs for each image alone."""
    names = tuple(value.name for value in graph.graph.input)
    return (feed_of(preprocess([image], spec), names) for image in images)


def measure_ranges(graph: onnx.ModelProto, names: Sequence[str], feeds: Iterable[Mapping[str, Array]]) -> Ranges:
    """The minimum and maximum of each tensor over all feeds.

    The graph returns two numbers per tensor, and keeps no tensor longer than an ordinary prediction does. ONNX
    Runtime's own calibration reduces every float tensor, which took more than 13 GB for the gather form of deformable
    attention.

    Args:
        graph: float32; not changed.
        names: of its tensors.
        feeds: at least one.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # give memory back after every tensor
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(
        _with_extremes(graph, names).SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    wanted = [name + end for end in (_LOW, _HIGH) for name in names]
    rows = np.array([np.ravel(session.run(wanted, dict(feed))) for feed in feeds]).reshape(-1, 2, len(names))
    lowest, highest = np.fmin.reduce(rows[:, 0]), np.fmax.reduce(rows[:, 1])
    return {name: (float(low), float(high)) for name, low, high in zip(names, lowest, highest, strict=True)}


def _with_extremes(graph: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of the graph that outputs the minimum and maximum of some tensors.

    They are reduced where each tensor is made.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    wanted = set(names)
    del copy.graph.node[:], copy.graph.output[:]

    def reduce(name: str) -> None:
        for kind, end in (("ReduceMin", _LOW), ("ReduceMax", _HIGH)):
            copy.graph.node.append(helper.make_node(kind, [name], [name + end], name=name + end, keepdims=0))
            copy.graph.output.append(helper.make_tensor_value_info(name + end, TensorProto.FLOAT, []))

    for value in graph.graph.input:
        if value.name in wanted:
            reduce(value.name)
    for node in graph.graph.node:
        copy.graph.node.append(node)
        for name in node.output:
            if name in wanted:
                reduce(name)
    return copy
