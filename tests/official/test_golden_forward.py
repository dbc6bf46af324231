"""Our detectors, loaded with official weights through the importer, give the official outputs."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from helpers.paths import GOLDEN
from torch import Tensor

from siamdetr.models.detector import Detector
from siamdetr.official.convert import load_official

CASES = [("A_detr", "detr"), ("A_detr_dc5", "detr"), ("A_conditional", "conditional-detr")]


def helper(name: str) -> ModuleType:
    """A reader that came with the golden figures."""
    spec = importlib.util.spec_from_file_location(name, GOLDEN / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def padded_batch(images: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Images zero-padded right and below to the largest, and the mask, True on padding."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    batch, padding = torch.zeros(len(images), 3, height, width), torch.ones(len(images), height, width).bool()
    for index, image in enumerate(images):
        _, h, w = image.shape
        batch[index, :, :h, :w] = torch.from_numpy(image)
        padding[index, :h, :w] = False
    return batch, padding


@pytest.fixture(params=CASES, ids=[case for case, _ in CASES])
def golden(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
    case, family = request.param
    meta, arrays = helper("golden_io").load(GOLDEN / f"{case}.npz")
    return meta, arrays, family


def test_official_outputs_are_reproduced(golden: tuple[dict[str, Any], dict[str, np.ndarray], str]) -> None:
    meta, arrays, family = golden
    weights = helper("golden_fill").fill(dict(meta["state_dict"]), meta["aliases"])
    detector = load_official(weights, family=family, arguments=meta["spec"]["model"])
    assert isinstance(detector, Detector)
    detector.eval()
    images, padding = padded_batch(helper("golden_fill").make_images(meta["spec"]["sizes"], meta["spec"]["seed"]))
    with torch.no_grad():
        memory = detector.encode(images, padding)
        outputs = detector.decode(detector.queries(len(images)), memory)

    step = meta["channel_step"]["encoder_memory"]
    found = {
        "pred_logits": outputs.logits[-1],
        "pred_boxes": outputs.boxes[-1],
        "aux_logits": outputs.logits[:-1],
        "aux_boxes": outputs.boxes[:-1],
        "encoder_memory": memory.tokens.transpose(0, 1)[..., ::step],
    }
    tolerance = {
        "pred_logits": 1e-3, "aux_logits": 1e-3, "pred_boxes": 2e-4, "aux_boxes": 2e-4, "encoder_memory": 5e-4,
    }  # fmt: skip
    for name, value in found.items():
        np.testing.assert_allclose(value.numpy(), arrays[name], rtol=0, atol=tolerance[name], err_msg=name)
