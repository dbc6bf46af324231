"""Half precision in the graph: multiplications are half, the islands are not, no value overflows."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.exported import VARIANTS, traced
from onnx import TensorProto, helper, numpy_helper

from siamdetr.errors import ExportError
from siamdetr.export.gate.images import drawn_images
from siamdetr.export.int8.quantize import quantizable
from siamdetr.export.precision import MULTIPLIERS, HalfPrecision, before_selection, islands, to_half

ISLAND_OPERATORS = {
    "LayerNormalization",
    "Softmax",
    "Sin",
    "Cos",
    "Log",
    "InstanceNormalization",
    "TopK",
    "CumSum",
    "Exp",
}


def types_of(graph: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value."""
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True).graph
    values = [*inferred.input, *inferred.output, *inferred.value_info]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {weight.name: weight.data_type for weight in inferred.initializer}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_multiplies_is_half_and_the_islands_are_not(name: str) -> None:
    half = to_half(traced(name), "fp16")
    types = types_of(half.graph)
    onnx.checker.check_model(half.graph, full_check=True)
    for node in half.graph.graph.node:
        if node.op_type in ISLAND_OPERATORS:
            assert TensorProto.FLOAT16 not in {types.get(value) for value in [*node.input, *node.output]}, node.name
    halves = [
        node
        for node in half.graph.graph.node
        if node.op_type in MULTIPLIERS and types[node.output[0]] == TensorProto.FLOAT16
    ]
    assert len(halves) == half.half_multipliers > 0.8 * half.multipliers
    kept = islands(traced(name))
    assert not kept & {node.name for node in halves}
    assert {value.name: types[value.name] for value in half.graph.graph.output} == {
        value.name: value.type.tensor_type.elem_type for value in traced(name).graph.output
    }


@pytest.mark.parametrize("name", ["vanilla", "conditional", "dab"])
def test_islands_are_the_scores_of_attention_and_projections_to_coordinates(name: str) -> None:
    graph = traced(name)
    weights = {weight.name: list(weight.dims) for weight in graph.graph.initializer}
    found = [node for node in graph.graph.node if node.name in islands(graph)]
    scores = [node for node in found if node.input[1] not in weights]
    softmaxes = sum(node.op_type == "Softmax" for node in graph.graph.node)
    softmaxes -= name == "vanilla"  # one is of the classes
    assert len(scores) == softmaxes == 5  # an encoder layer, and two looks of each of two decoder layers
    coordinates = [weights[node.input[1]][-1] for node in found if node.input[1] in weights]
    assert set(coordinates) <= {2, 4}
    assert 4 in coordinates
    assert (2 in coordinates) == (name != "vanilla")


@pytest.mark.parametrize("name", VARIANTS)
def test_no_constant_is_out_of_range(name: str) -> None:
    for weight in to_half(traced(name), "fp16").graph.graph.initializer:
        if weight.data_type == TensorProto.FLOAT16:
            assert np.isfinite(numpy_helper.to_array(weight)).all()


def small(constant: float, operators: list[onnx.NodeProto]) -> onnx.ModelProto:
    """x [2, 3] -> y, over a 3 × 3 weight w and a constant c."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy")
    weights = [
        numpy_helper.from_array(np.eye(3, dtype=np.float32) * 1.2345678, "w"),
        numpy_helper.from_array(np.array(constant, np.float32), "c"),
    ]
    graph = helper.make_graph(operators, "small", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_a_constant_that_half_precision_cannot_hold_keeps_its_operation_in_float32() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="m"),
        helper.make_node("Add", ["a", "c"], ["y"], name="n"),
    ]
    for constant, kept in ((1e9, True), (-1e4, False)):
        graph = to_half(small(constant, nodes), "fp16").graph
        constants = {weight.name: weight.data_type for weight in graph.graph.initializer}
        assert constants[("c" if kept else "c_half")] == (TensorProto.FLOAT if kept else TensorProto.FLOAT16)
        assert run(graph, np.ones((2, 3), np.float32))[0, 0] == pytest.approx(1.2345678 + constant, rel=1e-3)


def run(graph: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    return np.asarray(found)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_emulation_rounds_where_the_half_graph_does(precision: HalfPrecision) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"], name="m"), helper.make_node("Relu", ["a"], ["y"], name="n")]
    x = np.linspace(0.1, 3, 6, dtype=np.float32).reshape(2, 3)
    emulated = run(to_half(small(0, nodes), precision, emulate=True).graph, x)
    exact = run(small(0, nodes), x)
    assert 0 < np.abs(emulated - exact).max() < 0.03
    import ml_dtypes

    kind = np.float16 if precision == "fp16" else ml_dtypes.bfloat16
    assert np.array_equal(emulated, emulated.astype(kind).astype(np.float32))
    if precision == "fp16":
        assert np.allclose(emulated, run(to_half(small(0, nodes), "fp16").graph, x), atol=2e-3)


def test_emulated_fp16_of_a_detector_is_as_far_from_float32_as_fp16_itself() -> None:
    graph = traced("conditional")
    sizes = np.array([[480, 640]] * 2)
    feed = {"images": drawn_images(2, 96, 128), "original_sizes": sizes}

    def logits(model: onnx.ModelProto) -> np.ndarray:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(["logits"], feed)[0])

    exact = logits(graph)
    real = np.abs(logits(to_half(graph, "fp16").graph) - exact).max()
    emulated = np.abs(logits(to_half(graph, "fp16", emulate=True).graph) - exact).max()
    assert 0 < real < 0.1
    assert real / 5 < emulated < real * 5


def test_bf16_is_valid_onnx_and_has_no_grid_sample() -> None:
    graph = traced("conditional")
    half = to_half(graph, "bf16").graph
    assert (graph.opset_import[0].version, half.opset_import[0].version) == (18, 22)
    onnx.checker.check_model(half, full_check=True)
    assert TensorProto.BFLOAT16 in types_of(half).values()
    graph.graph.node.append(helper.make_node("GridSample", ["images", "original_sizes"], ["z"], name="sampler"))
    with pytest.raises(ExportError, match=r"bf16: got a graph with GridSample, .* take --sampling gather"):
        to_half(graph, "bf16")


def test_weights_of_half_files_take_half_the_bytes() -> None:
    def weights(graph: onnx.ModelProto) -> int:
        return sum(len(weight.raw_data) for weight in graph.graph.initializer)

    for precision in ("fp16", "bf16"):
        assert weights(to_half(traced("conditional"), precision).graph) < 0.55 * weights(traced("conditional"))


def test_int8_spares_attention_coordinates_and_classes() -> None:
    graph = traced("conditional")
    weights = {weight.name: list(weight.dims) for weight in graph.graph.initializer}
    chosen = [node for node in graph.graph.node if node.name in quantizable(graph)]
    assert all(node.input[1] in weights for node in chosen)
    ends = {weights[node.input[1]][-1] for node in chosen if node.op_type == "MatMul"}
    assert ends == {32}  # neither 2, 4, nor the three classes
    assert sum(node.op_type == "Conv" for node in chosen) == sum(node.op_type == "Conv" for node in graph.graph.node)


@pytest.mark.parametrize("name", ["dino", "rtdetr", "two-stage"])
def test_what_a_selection_of_queries_depends_on_ends_before_the_decoder(name: str) -> None:
    graph = traced(name)
    kept = before_selection(graph)
    half, rest = to_half(graph, "fp16"), to_half(graph, "fp16", kept=kept)
    types = types_of(rest.graph)
    assert not {node.name for node in rest.graph.graph.node if types[node.output[0]] == TensorProto.FLOAT16} & kept
    assert 0 < rest.half_multipliers < half.half_multipliers
    convolutions = {node.name for node in graph.graph.node if node.op_type == "Conv"}
    assert convolutions <= kept


@pytest.mark.parametrize("name", ["vanilla", "deformable"])
def test_a_detector_of_learned_queries_selects_none(name: str) -> None:
    assert not before_selection(traced(name))
