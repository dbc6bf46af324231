"""Deformable DETR in its four forms equals the official code, read through the importer.

The importer also reads other sizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden.golden_fill import fill
from golden.golden_io import load
from helpers.deformable_checkpoints import other_checkpoint
from helpers.golden import GOLDEN, batch_of, near, read
from helpers.official_losses import official_name, scenario, total_like_the_official_one
from torch import Tensor

from siamdetr.models.criterion.matcher import match
from siamdetr.models.detector import Detector
from siamdetr.official.convert import OfficialCheckpointError, import_official, load_criterion, load_official
from siamdetr.structures.model import Outputs

FORMS = ["ss", "ms", "ms_refine", "ms_refine_twostage"]


def detector_of(weights: dict[str, Tensor], arguments: dict[str, Any]) -> Detector:
    detector = load_official(weights, family="deformable-detr", arguments=arguments)
    assert isinstance(detector, Detector)
    return detector.eval()


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_forward_equals_the_official_one(form: str) -> None:
    meta, stored = read(f"A_deformable_{form}")
    detector = detector_of(fill(dict(meta["state_dict"]), meta["aliases"]), meta["spec"]["model"])
    images, padding = batch_of(meta)
    memory = detector.encode(images, padding)
    outputs = detector.decode(detector.queries(len(images)), memory)
    near(memory.tokens[..., :: meta["channel_step"]["encoder_memory"]], stored["encoder_memory"], 5e-4)
    near(outputs.logits, torch.cat([stored["aux_logits"], stored["pred_logits"][None]]), 1e-3)
    near(outputs.boxes, torch.cat([stored["aux_boxes"], stored["pred_boxes"][None]]), 2e-4)
    assert (outputs.proposals is not None) == ("enc_logits" in stored)
    if outputs.proposals is not None:
        near(outputs.proposals.logits[0], stored["enc_logits"], 1e-3)
        near(outputs.proposals.boxes[0], stored["enc_boxes"], 2e-4)


@pytest.mark.parametrize("name", ["s0", "s1", "s2"])
def test_losses_of_proposals_equal_the_official_ones(name: str) -> None:
    meta, arrays = load(GOLDEN / "B_deformable_twostage.npz")
    criterion = load_criterion("deformable-detr", meta["spec"]["criterion"])
    logits, boxes, targets = scenario(arrays, name)
    first = [torch.from_numpy(arrays[f"{name}/enc_{kind}"])[None].requires_grad_() for kind in ("logits", "boxes")]
    proposals = Outputs(*first, hidden=torch.zeros(1))
    losses = criterion(Outputs(logits, boxes, hidden=torch.zeros(1), proposals=proposals), targets)
    assert {official_name(key): value for key, value in criterion.weights.items()} == meta["weight_dict"]
    total_like_the_official_one(losses, criterion, arrays, name=name).backward()
    for tensor, key in zip(first, ("pred_logits", "pred_boxes"), strict=True):
        assert tensor.grad is not None
        near(tensor.grad[0], torch.from_numpy(arrays[f"{name}/grad/enc/{key}"]), 1e-6)
    near(logits.grad[-1], torch.from_numpy(arrays[f"{name}/grad/last/pred_logits"]), 1e-6)  # type: ignore[index]

    objects = type(targets)(targets.boxes, torch.zeros_like(targets.labels), targets.counts)
    matches = match(first[0], first[1], objects, criterion.settings, "focal")
    starts = np.cumsum([0, *targets.counts])
    for image in range(len(targets.counts)):
        here = matches.image == image
        pairs = torch.stack([matches.query[here], matches.target[here] - int(starts[image])])
        assert pairs.tolist() == arrays[f"{name}/match/enc/{image}"].tolist()


@pytest.mark.parametrize("form", FORMS)
def test_settings_are_read_off_tensors_of_other_sizes(form: str) -> None:
    levels = 1 if form == "ss" else 3
    weights = other_checkpoint(f"deformable_{form}", levels=levels, layers=3, points=2, queries=7)
    imported = import_official(weights, family="deformable-detr", arguments={"num_queries": 7, "lr": 1e-4})
    detector = imported.module
    assert isinstance(detector, Detector)
    settings = detector.settings
    assert (settings.levels, settings.decoder_layers, settings.num_queries, settings.feedforward) == (levels, 3, 7, 512)
    assert (settings.encoder_points, settings.decoder_points) == (2, 2)
    assert (settings.refine, settings.two_stage) == ("refine" in form, "twostage" in form)
    assert imported.coverage.missing == {}
    assert imported.coverage.ignored_options == ("lr",)
    assert set(imported.coverage.used) | set(imported.coverage.left_aside) == set(weights)
    detector.eval()
    with torch.no_grad():
        assert detector(torch.randn(3, 3, 64, 96)).boxes.shape == (3, 3, 7, 4)


def test_arguments_that_contradict_the_tensors_are_named() -> None:
    weights = other_checkpoint("deformable_ms", levels=3, layers=2, points=2, queries=7)
    with pytest.raises(
        OfficialCheckpointError, match=r"num_feature_levels=4 contradicts tensor 'transformer.level_embed'"
    ):
        detector_of(weights, {"num_feature_levels": 4})
    with pytest.raises(OfficialCheckpointError, match=r"with_box_refine=True contradicts tensor"):
        detector_of(weights, {"with_box_refine": True})
    with pytest.raises(OfficialCheckpointError, match=r"enc_n_points=4 contradicts tensor .*attention_weights.bias"):
        detector_of(weights, {"enc_n_points": 4})
