"""Pretraining equals the official Siamese DETR.

Queries, hidden states, predictions, targets, matches, losses and gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from golden.golden_fill import fill, make_boxes, make_images
from golden.golden_io import load
from helpers.paths import GOLDEN
from torch import Tensor

from siamdetr.boxes import xyxy_to_cxcywh
from siamdetr.models.criterion.layer_losses import weighted_sum
from siamdetr.official.convert import IMPORTERS, load_official
from siamdetr.official.rules import translate
from siamdetr.pretext.batches import ViewBatch
from siamdetr.pretext.common import crop_features, region_features
from siamdetr.pretext.prompt import condition_queries
from siamdetr.pretext.siamese import SiameseDETR, swap_views

CASES = ["vanilla", "vanilla_enc", "conditional", "conditional_enc", "conditional_r50", "deformable", "deformable_enc"]
OFFICIAL_NAMES = {
    "loss_class": "loss_ce",
    "loss_region": "loss_feature",
    "loss_global": "loss_enc_global_contra",
}
OFFICIAL_MODULES = {
    "patch2query": ("region_projection.",),
    "transformer": ("detector.encoder.", "detector.decoder.", "detector.learned_queries.content."),
    "pred_head": ("detector.class_head.", "detector.box_head.", "feature_head."),
    "input_proj": ("detector.input_projection.",),
    "enc_head": ("global_head.",),
    "query_embed": ("detector.learned_queries.position.",),
}


def official_model(meta: dict[str, Any]) -> SiameseDETR:
    weights = fill(dict(meta["state_dict"]), meta.get("aliases"))
    weights |= {key: torch.tensor(value) for key, value in meta["constants"].items()}
    model = load_official(weights, family="siamese-detr", arguments=meta["spec"]["model"] | {"dropout": 0.0})
    assert isinstance(model, SiameseDETR)
    model.box_jitter = 0.0
    return model.train(meta["spec"]["heads"] == "train")


def official_batch(spec: dict[str, Any]) -> ViewBatch:
    """Images, boxes and crops as the fixtures' README says; view 1 of all samples, then view 2 of all."""
    sizes, seed, regions = spec["sizes"], spec["seed"], spec["model"]["num_patches"]
    samples = len(sizes)
    height, width = (max(side) for side in zip(*sizes, strict=True))
    images, padding = torch.zeros(2, samples, 3, height, width), torch.ones(2, samples, height, width, dtype=torch.bool)
    for index, views in enumerate(make_images(sizes, seed, lead=(2, 3))):
        h, w = views.shape[-2:]
        images[:, index, :, :h, :w] = torch.from_numpy(views)
        padding[:, index, :h, :w] = False
    boxes = torch.from_numpy(np.stack(make_boxes([regions] * 2 * samples, seed + 1)))
    crops = torch.from_numpy(make_images([spec["crop"]], seed + 2, lead=(samples, 2, regions, 3))[0])
    return ViewBatch(
        images=images.flatten(0, 1),
        padding=padding.flatten(0, 1),
        boxes=xyxy_to_cxcywh(boxes.view(samples, 2, regions, 4).transpose(0, 1).flatten(0, 1)),
        sizes=torch.tensor(sizes).repeat(2, 1),
        crops=crops.transpose(0, 1).flatten(0, 1),
    )


def official_name(name: str) -> str:
    for ours, theirs in OFFICIAL_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def close(ours: Tensor, stored: np.ndarray, absolute: float) -> None:
    torch.testing.assert_close(ours.detach(), torch.from_numpy(stored), rtol=0, atol=absolute)


def joint_norm(gradients: Sequence[Tensor]) -> float:
    return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_the_official_ones(case: str) -> None:
    meta, arrays = load(GOLDEN / f"D_siamese_{case}.npz")
    model = official_model(meta)
    losses = model(official_batch(meta["spec"]))
    stored = {key.removeprefix("loss/"): value for key, value in arrays.items() if key.startswith("loss/")}
    ours = {official_name(key): value for key, value in losses.items() if not key.startswith("monitor_")}
    assert sorted(ours) == sorted(stored)
    for key, value in stored.items():
        torch.testing.assert_close(ours[key].detach(), torch.tensor(value), rtol=1e-4, atol=1e-5, msg=key)
    weights = {key: value for key, value in meta["weight_dict"].items() if key in ours}
    assert {official_name(key): value for key, value in model.loss_weights.items()} == weights

    total = weighted_sum(losses, model.loss_weights)
    torch.testing.assert_close(total.detach(), torch.tensor(arrays["total"]), rtol=1e-4, atol=0)
    total.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    for name, prefixes in OFFICIAL_MODULES.items():
        if f"grad_norm/{name}" in arrays:
            norm = joint_norm([gradient for key, gradient in gradients.items() if key.startswith(prefixes)])
            assert norm == pytest.approx(float(arrays[f"grad_norm/{name}"]), rel=0.01), name
    rules = IMPORTERS["siamese-detr"].rules(model)
    for name, wanted in zip(meta["grad_names"], arrays["grad_norms"].tolist(), strict=True):
        places = translate(name, rules)
        assert isinstance(places, tuple)
        if wanted > 1e-3 * arrays["grad_norms"].max():  # below it is rounding noise around zero
            assert joint_norm([gradients[place] for place in places]) == pytest.approx(wanted, rel=0.01), name
    assert all(parameter.grad is None for parameter in model.detector.backbone.parameters())


@pytest.mark.parametrize("case", CASES)
def test_queries_predictions_targets_and_matches_equal_the_official_ones(case: str) -> None:
    meta, arrays = load(GOLDEN / f"D_siamese_{case}.npz")
    model, batch = official_model(meta), official_batch(meta["spec"])
    with torch.no_grad():
        features = model.teacher(batch.images)
        regions = region_features(features, batch.boxes, batch.sizes, model.detector.backbone.strides)
        projected = model.region_projection(regions)
        position = condition_queries(model.detector.queries(len(batch.boxes)), projected).position
        outputs, _ = model.predict(batch)
        wanted = crop_features(model.teacher, batch.crops)
        _, matches = model.criterion.losses_and_matches(outputs, batch.targets)
    assert position is not None
    samples, regions_each = len(batch.boxes) // 2, batch.boxes.shape[1]
    last = len(outputs.logits) - 1
    for view in (1, 2):
        seen_from = slice((view - 1) * samples, view * samples)  # images by the view of the queries
        decoded = slice((2 - view) * samples, (3 - view) * samples)  # images by the view that was decoded
        stored = {key.removeprefix(f"view{view}/"): v for key, v in arrays.items() if key.startswith(f"view{view}/")}
        close(position[seen_from].transpose(0, 1), stored["query"], 1e-3)
        close(outputs.hidden[:, decoded], stored["hs"], 1e-3)
        close(outputs.logits[last, decoded], stored["pred_logits"], 1e-3)
        close(outputs.boxes[last, decoded], stored["pred_boxes"], 2e-4)
        close(outputs.logits[:last, decoded], stored["aux_logits"], 1e-3)
        close(outputs.boxes[:last, decoded], stored["aux_boxes"], 2e-4)
        step = meta["channel_step"]["feature_target"]
        close(wanted[seen_from].flatten(0, 1)[:, ::step], stored["feature_target"], 1e-3)
        for sample in range(samples):
            image = sample + decoded.start
            here = (matches.layer == last) & (matches.image == image)
            pairs = torch.stack([matches.query[here], matches.target[here] - image * regions_each])
            assert pairs.tolist() == stored[f"match/{sample}"].tolist()


def test_swapping_twice_changes_nothing() -> None:
    x = torch.arange(6)
    assert swap_views(x).tolist() == [3, 4, 5, 0, 1, 2]
    assert swap_views(swap_views(x)).tolist() == x.tolist()
