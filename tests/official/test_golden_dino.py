"""DINO equals the official code, read through the importer.

The importer also reads other sizes, and refuses other forms.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden.golden_fill import fill
from golden.golden_io import load
from helpers.golden import (
    Case,
    batch_of,
    contrastive_queries_like_the_official_ones,
    detector_of,
    near,
    read,
    step_like_the_official_one,
    two_stage_forward_like_the_official_one,
)
from helpers.official_losses import (
    proposals_of,
    scenario,
    total_like_the_official_one,
    two_stage_gradients_like_the_official_ones,
    two_stage_outputs,
)
from helpers.paths import GOLDEN
from torch import Tensor

from siamdetr.models.criterion.matcher import match
from siamdetr.models.denoising import Draws
from siamdetr.models.detector import Detector
from siamdetr.models.heads import each_head
from siamdetr.models.query_selection import cell_anchors
from siamdetr.official.convert import OfficialCheckpointError, import_official, load_criterion, looks_like
from siamdetr.settings.detector import DenoisingSettings
from siamdetr.structures.targets import Targets

TRAINING = ["C_dino", "C_dino_emptyimage"]


def official_name(name: str) -> str:
    """`loss_class_dn_0` is `loss_ce_dn_0`, `loss_bbox_enc` is `loss_bbox_interm`."""
    return name.replace("loss_class", "loss_ce").replace("_enc", "_interm")


def denoising_of(case: Case) -> tuple[Targets, DenoisingSettings, Draws]:
    """The official options: from 50 on `dn_number` counts queries, below 50 half the groups.

    Half of a label noise is used.
    """
    meta, stored = case
    noise, images = meta["spec"]["dn"], range(len(meta["spec"]["sizes"]))
    number = noise["dn_number"]
    counted = {"queries": number} if number >= 50 else {"groups": 2 * number}
    settings = DenoisingSettings(
        label_noise=noise["dn_label_noise_ratio"] / 2, box_noise=noise["dn_box_noise_scale"], **counted
    )
    chance = stored["draw/label_p"]
    new = torch.zeros(len(chance), dtype=torch.int64)
    new[chance < settings.label_noise] = stored["draw/label_new"]
    moves = (stored["draw/box_sign"] * 2 - 1) * stored["draw/box_u"]
    targets = Targets.from_lists(
        [stored[f"target_boxes_{i}"] for i in images], [stored[f"target_labels_{i}"] for i in images]
    )
    return targets, settings, Draws(chance, new, (moves + 1) / 2)


def test_forward_equals_the_official_one() -> None:
    _, stored = case = read("A_dino")
    memory = two_stage_forward_like_the_official_one(case, "dino", padded=True)
    anchors, _ = cell_anchors(memory)
    near(anchors.gather(1, stored["enc_index"][..., None].expand(-1, -1, 4)), stored["enc_proposals"], 1e-5)


@pytest.mark.parametrize("name", TRAINING)
def test_denoising_queries_equal_the_official_ones(name: str) -> None:
    case = read(name)
    anchors = contrastive_queries_like_the_official_ones(case, "dino", denoising_of(case))
    near(anchors.logit(), case[1]["dn/box_query"], 1e-4)


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_step_equals_the_official_one(name: str) -> None:
    """Look forward twice shows in the gradients alone."""
    meta, stored = case = read(name)
    detector = detector_of(meta, "dino").train()
    targets, settings, draws = denoising_of(case)
    outputs = detector(*batch_of(meta), detector.training_queries(targets, settings, draws))
    near(outputs.proposals.logits[0], stored["enc_logits"], 1e-3)
    step_like_the_official_one(case, "dino", detector, outputs, targets, official_name)


@pytest.mark.parametrize("name", ["s0", "s1", "s2"])
def test_losses_total_and_gradients_equal_the_official_ones(name: str) -> None:
    meta, arrays = load(GOLDEN / "B_dino.npz")
    criterion = load_criterion("dino", meta["spec"]["criterion"])
    logits, boxes, targets = scenario(arrays, name)
    outputs = two_stage_outputs(logits, boxes, proposals_of(arrays, name))
    losses = criterion(outputs, targets)
    weights = {official_name(key): weight for key, weight in criterion.weights.items()}
    assert {key: weight for key, weight in weights.items() if "_dn" not in key} == meta["weight_dict"]
    of_copies = {key: losses.pop(key) for key in list(losses) if "_dn" in key}
    assert of_copies
    assert all(value == 0 for value in of_copies.values())  # nothing was noised
    named = {official_name(key): value for key, value in losses.items()}
    total_like_the_official_one(named, criterion, arrays, name=name, weights=weights).backward()
    two_stage_gradients_like_the_official_ones(outputs, arrays, name)


@pytest.mark.parametrize("name", ["s0", "s1", "s2"])
def test_proposals_are_matched_as_by_the_official_code(name: str) -> None:
    meta, arrays = load(GOLDEN / "B_dino.npz")
    criterion = load_criterion("dino", meta["spec"]["criterion"])
    _, _, targets = scenario(arrays, name)
    matches = match(*proposals_of(arrays, name), targets, criterion.settings, "focal")
    starts = [sum(targets.counts[:image]) for image in range(len(targets.counts))]
    for image, start in enumerate(starts):
        here = matches.image == image
        pairs = torch.stack([matches.query[here], matches.target[here] - start])
        assert pairs.tolist() == arrays[f"{name}/match/enc/{image}"].tolist()


def other_checkpoint() -> dict[str, Tensor]:
    """A checkpoint of other sizes, as data-parallel training saves it.

    Five levels, one decoder layer, 9 queries, 4 classes, and a label embedding of 91 classes.
    """
    meta, _ = read("A_dino")
    state = fill(dict(meta["state_dict"]), meta["aliases"])
    dropped = (
        "decoder.layers.1.",
        "decoder.layers.2.",
        "bbox_embed.1.",
        "bbox_embed.2.",
        "class_embed.1.",
        "class_embed.2.",
    )
    made = {}
    for name, value in state.items():
        if any(part in name for part in dropped):
            continue
        if "class_embed" in name:
            value = value[:4]
        elif name == "label_enc.weight":
            value = torch.randn(92, 256)
        elif name == "transformer.tgt_embed.weight":
            value = value[:9]
        elif name == "transformer.level_embed":
            value = torch.cat([value, value[:1]])
        elif "sampling_offsets" in name or "attention_weights" in name:  # eight heads, four points of each level
            value = torch.cat([value, value[: len(value) // 4]])
        made[f"module.{name}"] = value.half()
    for name, shape in (("0.weight", (256, 256, 3, 3)), ("0.bias", (256,)), ("1.weight", (256,)), ("1.bias", (256,))):
        made[f"module.input_proj.4.{name}"] = torch.randn(shape).half()
    return made


@torch.no_grad()
def test_settings_are_read_off_tensors_of_other_sizes() -> None:
    weights = other_checkpoint()
    assert looks_like(weights) == "dino"
    imported = import_official(weights, family="dino", arguments={"lr": 1e-4})
    detector, coverage = imported.module, imported.coverage
    assert isinstance(detector, Detector)
    settings = detector.settings
    assert (settings.variant, settings.levels, settings.decoder_layers, settings.num_queries) == ("dino", 5, 1, 9)
    assert (settings.num_classes, settings.feedforward, settings.dropout) == (4, 512, 0)
    assert settings.own_position_temperature == 20
    assert len(each_head(detector.class_head)) == 2
    assert coverage.missing == {}
    assert coverage.ignored_options == ("lr",)
    assert coverage.left_aside["label_enc.weight[-88:]"] == "rows that the official code never reads"
    assert torch.equal(detector.learned_queries.labels.weight, weights["module.label_enc.weight"][:4].float())
    assert detector.eval()(torch.randn(1, 3, 128, 160)).boxes.shape == (1, 1, 9, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"two_stage_type": "no"}, "argument two_stage_type='no': expected 'standard'; others are not supported"),
        ({"num_patterns": 3}, "argument num_patterns=3: expected 0; others are not supported"),
        ({"num_queries": 51}, r"num_queries=51 contradicts tensor 'transformer.tgt_embed.weight' \[50, 256\]"),
        ({"dec_pred_class_embed_share": False}, "argument dec_pred_class_embed_share=False: expected True"),
        (
            {"return_interm_indices": [0, 1, 2, 3]},
            r"argument return_interm_indices=\[0, 1, 2, 3\]: expected \[1, 2, 3\]",
        ),
    ],
)
def test_other_forms_and_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    meta, _ = read("A_dino")
    weights = fill(dict(meta["state_dict"]), meta["aliases"])
    with pytest.raises(OfficialCheckpointError, match=message):
        import_official(weights, family="dino", arguments=meta["spec"]["model"] | changes)


def test_proposals_without_box_losses_are_refused() -> None:
    with pytest.raises(ValueError, match="no_interm_box_loss=True, expected False"):
        load_criterion("dino", {"num_classes": 7, "no_interm_box_loss": True})
