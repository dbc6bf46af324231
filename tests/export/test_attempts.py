"""A graph that the gate rejects keeps more of itself in float32."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.exported import export_variant, model_of, traced
from onnx import numpy_helper

from siamdetr.errors import ExportError
from siamdetr.export import onnx as exporting
from siamdetr.export.gate.checks import GateCheck, GateReport
from siamdetr.export.gate.images import drawn_samples
from siamdetr.export.int8.quantize import calibrated, quantizable
from siamdetr.export.int8.sensitivity import PARTS, parts_by_harm
from siamdetr.export.onnx import write_bundle
from siamdetr.export.options import ExportOptions, Precision
from siamdetr.export.precision import to_half

INT8 = ExportOptions(precision="int8")


def rejected(precision: Precision) -> GateReport:
    """A gate's report of a file in which no box has a counterpart."""
    return GateReport(precision, "a test", "a test", (GateCheck(1, 9, 9, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0),))


def with_large_channels(factor: float) -> tuple[onnx.ModelProto, str]:
    """A graph that computes the same with larger channels between two layers; the second layer's name.

    One scale for all channels is then that of the large ones, and eight bits leave nothing of the others.
    """
    graph = traced("conditional")
    nodes, weights = graph.graph.node, {weight.name: weight for weight in graph.graph.initializer}
    makers = {name: node for node in nodes for name in node.output}
    first, second = next(
        (makers[relu.input[0]], users[0])
        for relu in nodes
        if relu.op_type == "Relu" and makers[relu.input[0]].op_type == "Conv"
        for users in [[node for node in nodes if relu.output[0] in node.input]]
        if [node.op_type for node in users] == ["Conv"]
    )
    changes = [(name, np.s_[::2], factor) for name in first.input[1:]]  # weight, and bias if it has one
    for name, row, by in [*changes, (second.input[1], np.s_[:, ::2], 1 / factor)]:
        array = numpy_helper.to_array(weights[name]).copy()
        array[row] *= by
        weights[name].CopyFrom(numpy_helper.from_array(array, name))
    return graph, second.name


def test_the_part_with_large_channels_is_the_most_harmful(tmp_path: Path) -> None:
    graph, name = with_large_channels(1e4)
    samples, spec = drawn_samples(), model_of("conditional").preprocessing
    source = calibrated(graph, samples.images, spec)
    parts = parts_by_harm(source, samples.images, spec, tmp_path)
    assert len(parts) == PARTS
    assert sorted(name for part in parts for name in part) == sorted(source.layers)
    assert name in parts[0]
    assert not list(tmp_path.iterdir())


def test_layers_stay_float_until_the_gate_passes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    graph, _ = with_large_channels(1e4)
    with caplog.at_level(logging.WARNING):
        result = write_bundle(model_of("conditional"), graph, tmp_path, options=INT8, samples=drawn_samples())
    assert result.gate is not None
    assert result.gate.passed
    assert 0 < result.precision["multiplications_in_int8"] < len(quantizable(traced("conditional")))
    assert "int8 does not pass the gate; next with 1 of 8 parts of the network in float32" in caplog.text


def test_a_graph_that_fails_with_half_of_its_layers_in_float_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "run_gate", lambda *models, **options: rejected("int8"))
    with pytest.raises(ExportError, match=r"0.0% of the boxes have a counterpart .* must not be used"):
        write_bundle(model_of("conditional"), traced("conditional"), tmp_path, options=INT8, samples=drawn_samples())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx.rejected", "model.onnx.rejected.json"]


def test_half_precision_that_swaps_proposals_leaves_their_ranking_in_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate, calls = exporting.run_gate, []

    def first_fails(*models: Any, **options: Any) -> GateReport:
        calls.append(models)
        return rejected("fp16") if len(calls) == 1 else gate(*models, **options)

    monkeypatch.setattr(exporting, "run_gate", first_fails)
    result = export_variant("dino", tmp_path, ExportOptions(precision="fp16"))
    assert result.gate is not None
    assert result.gate.passed
    assert result.precision["multiplications_in_fp16"] < to_half(traced("dino"), "fp16").half_multipliers
    assert "fp16 does not pass the gate; next with everything in float32 that the choice of the queries" in caplog.text
