"""UP-DETR and DETReg equal their official code.

Masks, predictions, features, matches, losses and gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from golden.golden_fill import fill, make_images
from golden.golden_io import load
from helpers.paths import GOLDEN
from torch import Tensor, nn

from siamdetr.models.backbone.body import Backbone
from siamdetr.models.criterion.layer_losses import weighted_sum
from siamdetr.models.criterion.matcher import Matches
from siamdetr.models.detector import Outputs
from siamdetr.official.convert import IMPORTERS, load_official
from siamdetr.official.rules import translate
from siamdetr.pretext.batches import RegionBatch
from siamdetr.pretext.common import FrozenTeacher, crop_features
from siamdetr.pretext.detreg import DETReg
from siamdetr.pretext.prompt import group_mask
from siamdetr.pretext.updetr import UPDETR
from siamdetr.structures.targets import Targets

UPDETR_CASES = ["recon_mask0", "norecon_mask0", "recon_masked"]
Arrays = Mapping[str, np.ndarray]


def official_weights(meta: dict[str, Any]) -> dict[str, Tensor]:
    return fill(dict(meta["state_dict"]), meta["aliases"])


def official_batch(spec: dict[str, Any], arrays: Arrays, crops: Sequence[np.ndarray]) -> RegionBatch:
    """Images as the fixtures' README says, targets as stored, one array of crops an image."""
    sizes = spec["sizes"]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    images, padding = torch.zeros(len(sizes), 3, height, width), torch.ones(len(sizes), height, width, dtype=torch.bool)
    for index, pixels in enumerate(make_images(sizes, spec["seed"])):
        h, w = pixels.shape[-2:]
        images[index, :, :h, :w] = torch.from_numpy(pixels)
        padding[index, :h, :w] = False
    targets = Targets.from_lists(
        [torch.from_numpy(arrays[f"target_boxes_{i}"]) for i in range(len(sizes))],
        [torch.from_numpy(arrays[f"target_labels_{i}"]) for i in range(len(sizes))],
    )
    return RegionBatch(images, padding, targets, torch.from_numpy(np.concatenate(crops)))


def official_crops(spec: dict[str, Any]) -> list[np.ndarray]:
    """DETReg's, of each image as many as it has targets."""
    counts = spec["counts"]
    made = make_images([spec["crop"]] * len(counts), spec["seed"] + 2, lead=(max(counts), 3))
    return [crops[:count] for crops, count in zip(made, counts, strict=True)]


def close(ours: Tensor, stored: np.ndarray, absolute: float) -> None:
    torch.testing.assert_close(ours.detach(), torch.from_numpy(stored), rtol=0, atol=absolute)


def assert_predictions_and_matches(outputs: Outputs, matches: Matches, targets: Targets, arrays: Arrays) -> None:
    close(outputs.logits[-1], arrays["pred_logits"], 1e-3)
    close(outputs.boxes[-1], arrays["pred_boxes"], 2e-4)
    close(outputs.logits[:-1], arrays["aux_logits"], 1e-3)
    close(outputs.boxes[:-1], arrays["aux_boxes"], 2e-4)
    for image in range(len(targets.counts)):
        here = (matches.layer == len(outputs.logits) - 1) & (matches.image == image)
        pairs = torch.stack([matches.query[here], matches.target[here] - sum(targets.counts[:image])])
        assert pairs.tolist() == arrays[f"match/{image}"].tolist()


def assert_losses_and_gradients(
    model: nn.Module, losses: dict[str, Tensor], meta: dict[str, Any], arrays: Arrays, *, family: str, feature: str
) -> None:
    """Compare every official loss, the weights, the total, and the norm of every parameter's gradient."""
    names = {"loss_class": "loss_ce", feature.split("/")[0]: feature.split("/")[1]}

    def official(name: str) -> str:
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        return name

    stored = {key.removeprefix("loss/"): value for key, value in arrays.items() if key.startswith("loss/")}
    ours = {official(key): value for key, value in losses.items() if not key.startswith("monitor_")}
    assert sorted(ours) == sorted(stored)
    for key, value in stored.items():
        torch.testing.assert_close(ours[key].detach(), torch.tensor(value), rtol=1e-4, atol=1e-5, msg=key)
    weights = {official(key): value for key, value in model.loss_weights.items()}  # type: ignore[union-attr,operator]
    assert weights == meta["weight_dict"]
    total = weighted_sum(losses, model.loss_weights)  # type: ignore[arg-type]
    torch.testing.assert_close(total.detach(), torch.tensor(arrays["total"]), rtol=1e-4, atol=0)
    total.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    rules = IMPORTERS[family].rules(model)  # type: ignore[arg-type]
    for name, wanted in zip(meta["grad_names"], arrays["grad_norms"].tolist(), strict=True):
        places = translate(name.replace("transformer.decoder.bbox_embed", "bbox_embed"), rules)  # one head, two names
        assert isinstance(places, tuple)
        if wanted > 1e-3 * arrays["grad_norms"].max():  # below it is rounding noise around zero
            norm = float(torch.cat([gradients[place].flatten() for place in places]).norm())
            assert norm == pytest.approx(wanted, rel=0.01), name
    assert not any(name.startswith("detector.backbone.") for name in gradients)


@pytest.mark.parametrize("case", UPDETR_CASES)
def test_updetr_equals_the_official_one(case: str) -> None:
    meta, arrays = load(GOLDEN / f"E_updetr_{case}.npz")
    spec = meta["spec"]
    model = load_official(official_weights(meta), family="up-detr", arguments=spec["model"])
    assert isinstance(model, UPDETR)
    patches = spec["model"]["num_patches"]
    crops = make_images([spec["crop"]], spec["seed"] + 2, lead=(len(spec["sizes"]), patches, 3))[0]
    batch = official_batch(spec, arrays, list(crops))
    keep = spec["model"]["mask_ratio"] < torch.from_numpy(arrays["draw/mask"])[..., 0].T  # [B, Q]

    queries = model.detector.settings.num_queries
    hidden_from_each_other = group_mask(queries, patches, torch.device("cpu"))
    assert torch.equal(~hidden_from_each_other, torch.from_numpy(arrays["attention_mask_open"]))
    outputs, features = model.predict(batch, keep)
    _, matches = model.criterion.losses_and_matches(outputs, batch.targets)
    assert_predictions_and_matches(outputs, matches, batch.targets, arrays)
    if model.feature_head is not None:
        close(features[:, :: meta["channel_step"]["feature_target"]], arrays["feature_target"], 1e-3)
        close(model.feature_head(outputs.hidden[-1]), arrays["pred_feature"], 1e-3)
    losses = model(batch, keep)
    assert_losses_and_gradients(model, losses, meta, arrays, family="up-detr", feature="loss_feature/loss_feature")


@pytest.mark.parametrize("case", ["intermediate", "head"])
def test_detreg_equals_the_official_one(case: str) -> None:
    """With the stored target embeddings: those of `head` are of a batch norm with one image's statistics."""
    meta, arrays = load(GOLDEN / f"E_detreg_{case}.npz")
    spec = meta["spec"]
    model = load_official(official_weights(meta), family="detreg", arguments=spec["model"])
    assert isinstance(model, DETReg)
    batch = official_batch(spec, arrays, official_crops(spec))
    wanted = torch.from_numpy(np.concatenate([arrays[f"target_patches_{i}"] for i in range(len(spec["sizes"]))]))

    outputs, _ = model.predict(batch)
    _, matches = model.criterion.losses_and_matches(outputs, batch.targets)
    assert_predictions_and_matches(outputs, matches, batch.targets, arrays)
    assert model.embedding_head is not None
    close(model.embedding_head(outputs.hidden[-1]), arrays["pred_features"], 1e-3)
    losses = model.losses(outputs, batch.targets, wanted)
    assert_losses_and_gradients(
        model, losses, meta, arrays, family="detreg", feature="loss_embedding/loss_object_embedding"
    )


def test_the_embedding_of_a_crop_equals_that_of_the_official_target_network() -> None:
    meta, arrays = load(GOLDEN / "E_detreg_intermediate.npz")
    network = Backbone("resnet50")
    network.body.load_state_dict(
        {name.removeprefix("body."): value for name, value in fill(dict(meta["target_network"]["state_dict"])).items()}
    )
    crops = np.concatenate(official_crops(meta["spec"]))
    features = crop_features(FrozenTeacher(network).stride8, torch.from_numpy(crops), at_once=3)
    close(features, np.concatenate([arrays["target_patches_0"], arrays["target_patches_1"]]), 1e-3)
