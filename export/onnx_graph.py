"""Export a module as an ONNX graph with free batch, height and width.

The exporter may silently make a dimension constant that was asked to be free, so the graph is read back. Opset 18: 17
brought LayerNormalization; from 20 on, TensorRT has misread operators.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxslim
import torch
from numpy.typing import NDArray

from siamdetr.errors import ExportError
from siamdetr.export.end_to_end import EndToEnd
from siamdetr.export.gate.images import drawn_images

logger = logging.getLogger(__name__)

OPSET = 18
INPUTS = {
    "images": ("batch", "3", "height", "width"),
    "original_sizes": ("batch", "2"),
    "valid_sizes": ("batch", "2"),
}


def trace(module: EndToEnd, folder: Path) -> onnx.ModelProto:
    """Trace a module into a float32 graph with all its outputs.

    Args:
        module: on the CPU, in evaluation mode.
        folder: for a temporary file.
    Raises:
        ExportError: a dimension that should be free became constant.
    """
    file = folder / "traced.onnx"
    # A map of one cell is a special case to the exporter, which would start again.
    least = module.settings.coarsest_stride + 1
    batch = torch.export.Dim("batch")
    height, width = torch.export.Dim("height", min=least), torch.export.Dim("width", min=least)
    names = list(INPUTS) if module.takes_padding else list(INPUTS)[:2]
    # Batch 1 would become constant.
    inputs = [torch.from_numpy(value) for value in _example(names, 2, 224, 288).values()]
    free = {"images": {0: batch, 2: height, 3: width}, "original_sizes": {0: batch}, "valid_sizes": {0: batch}}
    with _quiet():
        torch.onnx.export(
            module,
            tuple(inputs),
            str(file),
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=list(module.output_names),
            dynamic_shapes={name: free[name] for name in names},
            external_data=False,
            verbose=False,
        )
    graph = simplify(onnx.load(file))
    file.unlink()
    check_free_dimensions(graph, str(file))
    return graph


def with_outputs(graph: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy with some of the outputs, and only the nodes that they need."""
    kept = onnx.ModelProto()
    kept.CopyFrom(graph)
    outputs = {value.name: value for value in graph.graph.output}
    del kept.graph.output[:]
    kept.graph.output.extend(outputs[name] for name in names)
    needed = set(names)
    nodes = []
    for node in reversed(graph.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
    del kept.graph.node[:]
    kept.graph.node.extend(reversed(nodes))
    weights = [weight for weight in kept.graph.initializer if weight.name in needed]
    del kept.graph.initializer[:]
    kept.graph.initializer.extend(weights)
    return kept


def readable_by_older(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in the oldest format (IR version) that its operators allow.

    A runtime refuses a format that is newer than itself.
    """
    needed = onnx.helper.find_min_ir_version_for(graph.opset_import, ignore_unknown=True)
    graph.ir_version = min(graph.ir_version, needed)
    for node in graph.graph.node:
        del node.metadata_props[:]  # the exporter's notes to itself, which IR version 10 brought
    return graph


def check_free_dimensions(graph: onnx.ModelProto, file: str) -> None:
    """Check that batch, height and width are free in a graph.

    Raises:
        ExportError: the exporter made one of them constant; the text names it.
    """
    for value in graph.graph.input:
        for dimension, name in zip(value.type.tensor_type.shape.dim, INPUTS[value.name], strict=True):
            if not name.isdigit() and not dimension.dim_param:
                raise ExportError(
                    f"{file}: the exporter made '{name}' of input '{value.name}' constant ({dimension.dim_value}), expected "
                    "it free; some module of the detector computes with that size as a plain number"
                )


def simplify(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Simplify a graph, if that changes no bit of its outputs; else return it unchanged."""
    try:
        with _quiet():
            slimmed = onnxslim.slim(onnx.ModelProto.FromString(graph.SerializeToString()))
        same = all(np.array_equal(a, b) for a, b in zip(_answers(graph), _answers(slimmed), strict=True))
    except Exception as error:  # a tool that only makes files smaller must not cost the export
        logger.info("The graph stays as it is: onnxslim failed (%s).", error)
        return graph
    if not same:
        logger.info("The graph stays as it is: onnxslim would change its answers.")
    return slimmed if same else graph


def _answers(graph: onnx.ModelProto) -> list[NDArray[Any]]:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in graph.graph.input]
    return list(session.run(None, _example(names, 2, 160, 195)))


def _example(names: Sequence[str], batch: int, height: int, width: int) -> dict[str, NDArray[Any]]:
    sizes = np.tile(np.array([[480, 640]], dtype=np.int64), (batch, 1))
    valid = np.tile(np.array([[height, width]], dtype=np.int64), (batch, 1))
    valid[-1, 1] -= width // 3
    values: dict[str, NDArray[Any]] = {
        "images": drawn_images(batch, height, width),
        "original_sizes": sizes,
        "valid_sizes": valid,
    }
    return {name: values[name] for name in names}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which reports its internals; the saved graph is checked instead."""
    exporters = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [exporter.level for exporter in exporters]
    for exporter in exporters:
        exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for exporter, level in zip(exporters, levels, strict=True):
            exporter.setLevel(level)
