"""A small ONNX file made by hand: two constant boxes, with or without an attention output."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from helpers.tiny_models import NAMES
from siamdetr.export.bundle import METADATA_KEY, ModelCard
from siamdetr.images.preprocessing import PreprocessingSpec


def write_attention_onnx(path: Path, *, attention: bool) -> NDArray[np.float32]:
    """Write it; returns its attention [1, L, heads, K, h, w]."""
    maps = np.random.default_rng(0).random((1, 2, 4, 2, 3, 5), dtype=np.float32)
    values: dict[str, NDArray[np.generic]] = {
        "boxes": np.array([[[20, 5, 70, 50], [10, 10, 40, 40]]], np.float32),
        "scores": np.array([[0.6, 0.9]], np.float32),
        "labels": np.array([[0, 1]], np.int64),
    }
    if attention:
        values["attention"] = maps
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)) for name, value in values.items()
    ]
    inputs = [
        helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 3, "h", "w"]),
        helper.make_tensor_value_info("original_sizes", TensorProto.INT64, ["n", 2]),
    ]
    outputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in values.items()
    ]
    spec = PreprocessingSpec.from_size(64)
    card = ModelCard(NAMES, (), spec, outputs=tuple(values), detector={}, lineage=(), metrics={}, versions={})
    model = helper.make_model(
        helper.make_graph(nodes, "two boxes", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    helper.set_model_props(model, {METADATA_KEY: json.dumps(card.to_json())})
    onnx.save(model, path)
    return maps
