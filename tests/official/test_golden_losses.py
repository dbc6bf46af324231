"""Losses, matches and gradients equal the official DETR, Conditional, DAB- and Deformable DETR.

So does post-processing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden.golden_io import load
from helpers.official_losses import FAMILIES, official_name, scenario, total_like_the_official_one
from helpers.paths import GOLDEN

from siamdetr.models.criterion.matcher import match
from siamdetr.models.detector import Outputs
from siamdetr.models.postprocess import postprocess
from siamdetr.official.convert import load_criterion


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("name", ["s0", "s1", "s2"])
def test_losses_total_and_gradients_equal_the_official_ones(kind: str, name: str) -> None:
    meta, arrays = load(GOLDEN / f"B_{kind}.npz")
    criterion = load_criterion(FAMILIES[kind], meta["spec"]["criterion"])
    logits, boxes, targets = scenario(arrays, name)
    losses = criterion(Outputs(logits, boxes, hidden=torch.zeros(*logits.shape[:3], 1)), targets)
    assert {official_name(key): value for key, value in criterion.weights.items()} == meta["weight_dict"]
    total_like_the_official_one(losses, criterion, arrays, name=name).backward()
    layers = [*(f"aux{i}" for i in range(len(logits) - 1)), "last"]
    for index, layer in enumerate(layers):
        for tensor, key in ((logits, "pred_logits"), (boxes, "pred_boxes")):
            wanted = torch.from_numpy(arrays[f"{name}/grad/{layer}/{key}"])
            assert tensor.grad is not None
            torch.testing.assert_close(tensor.grad[index], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("name", ["s0", "s1", "s2"])
def test_matches_equal_the_official_ones(kind: str, name: str) -> None:
    meta, arrays = load(GOLDEN / f"B_{kind}.npz")
    criterion = load_criterion(FAMILIES[kind], meta["spec"]["criterion"])
    logits, boxes, targets = scenario(arrays, name)
    matches = match(logits, boxes, targets, criterion.settings, criterion.classifier)
    starts = np.cumsum([0, *targets.counts])
    for index, layer in enumerate([*(f"aux{i}" for i in range(len(logits) - 1)), "last"]):
        for image in range(len(targets.counts)):
            here = (matches.layer == index) & (matches.image == image)
            pairs = torch.stack([matches.query[here], matches.target[here] - int(starts[image])])
            assert pairs.tolist() == arrays[f"{name}/match/{layer}/{image}"].tolist()


@pytest.mark.parametrize(
    ("kind", "classifier"),
    [("detr", "softmax"), ("conditional", "focal"), ("dab", "focal"), ("deformable_ms", "focal"), ("dino", "focal")],
)
def test_postprocessing_equals_the_official_one(kind: str, classifier: Any) -> None:
    meta, arrays = load(GOLDEN / f"F_{kind}.npz")
    top_k = meta["spec"].get("postprocess", {}).get("num_select", 300 if kind == "dino" else 100)  # official defaults
    logits, boxes, sizes = (torch.from_numpy(arrays[key]) for key in ("pred_logits", "pred_boxes", "target_sizes"))
    found = postprocess(logits, boxes, sizes, classifier=classifier, top_k=top_k)
    torch.testing.assert_close(found.scores, torch.from_numpy(arrays["scores"]), rtol=0, atol=1e-6)
    assert found.labels.tolist() == arrays["labels"].tolist()
    torch.testing.assert_close(found.boxes, torch.from_numpy(arrays["boxes"]), rtol=0, atol=1e-3)
