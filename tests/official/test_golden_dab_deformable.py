"""DAB- and DN-DAB-Deformable-DETR equal the official code, read through the importer.

The importer also reads other sizes.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from helpers.deformable_checkpoints import other_checkpoint
from helpers.golden import batch_of, denoising_of, detector_of, near, read, train_like_the_official_one
from torch import Tensor

from siamdetr.models.criterion.layer_losses import weighted_sum
from siamdetr.models.detector import Detector
from siamdetr.models.heads import each_head
from siamdetr.official.convert import OfficialCheckpointError, import_official, load_criterion
from siamdetr.settings.detector import DenoisingSettings
from siamdetr.structures.targets import Targets

FAMILIES = {"dab_deformable": "dab-deformable-detr", "dn_deformable": "dn-deformable-detr"}


@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_forward_equals_the_official_one(kind: str) -> None:
    meta, stored = read(f"A_{kind}")
    detector, (images, padding) = detector_of(meta, FAMILIES[kind]).eval(), batch_of(meta)
    memory = detector.encode(images, padding)
    outputs = detector.decode(detector.queries(len(images)), memory)
    near(memory.tokens[..., :: meta["channel_step"]["encoder_memory"]], stored["encoder_memory"], 5e-4)
    near(outputs.logits, torch.cat([stored["aux_logits"], stored["pred_logits"][None]]), 1e-3)
    near(outputs.boxes, torch.cat([stored["aux_boxes"], stored["pred_boxes"][None]]), 2e-4)
    assert outputs.denoised is None


def test_denoising_queries_equal_the_official_ones() -> None:
    meta, stored = read("C_dn_deformable")
    queries = detector_of(meta, "dn-deformable-detr").training_queries(*denoising_of(meta, stored))
    assert queries.anchors is not None
    assert queries.attention_mask is not None
    near(queries.content, stored["dn/label_query"], 1e-6)
    near(queries.anchors.logit(), stored["dn/box_query"], 1e-4)
    assert queries.attention_mask.tolist() == stored["dn/attn_mask"].tolist()
    assert queries.num_denoising == stored["dn/pad_size"]


def test_denoising_training_step_equals_the_official_one() -> None:
    train_like_the_official_one(read("C_dn_deformable"), "dn-deformable-detr")


def other(kind: str) -> dict[str, Tensor]:
    """Three levels, three decoder layers, two points, seven queries, as data-parallel training saves it."""
    weights = other_checkpoint(kind, levels=3, layers=3, points=2, queries=7)
    return {f"module.{name}": value.half() for name, value in weights.items()}


@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_settings_are_read_off_tensors_of_other_sizes(kind: str) -> None:
    weights = other(kind)
    imported = import_official(weights, family=FAMILIES[kind], arguments={"transformer_activation": "prelu", "lr": 1})
    detector, coverage = imported.module, imported.coverage
    assert isinstance(detector, Detector)
    settings = detector.settings
    assert (settings.variant, settings.levels, settings.decoder_layers, settings.num_queries) == (kind, 3, 3, 7)
    assert (settings.encoder_points, settings.decoder_points, settings.feedforward) == (2, 2, 512)
    assert (len(each_head(detector.box_head)) == 3, settings.dropout, settings.own_activation) == (True, 0, "relu")
    assert coverage.missing == {}
    assert coverage.ignored_options == ("lr", "transformer_activation")  # which the official code ignores as well
    rows = {"label_enc.weight[-1]"} if kind == "dn_deformable" else set()
    assert {f"module.{name}" for name in {*coverage.used, *coverage.left_aside} - rows} == set(weights)
    detector.eval()
    for batch in (1, 3):
        assert detector(torch.randn(batch, 3, 64, 96)).boxes.shape == (3, batch, 7, 4)


def test_the_row_for_matching_queries_is_left_aside_in_words() -> None:
    weights = other("dn_deformable")
    imported = import_official(weights, family="dn-deformable-detr", arguments={})
    assert imported.coverage.left_aside["label_enc.weight[-1]"] == "rows that the official code never reads"
    queries = imported.module.state_dict()
    assert torch.equal(queries["learned_queries.labels.weight"], weights["module.label_enc.weight"][:7].float())
    assert torch.equal(queries["learned_queries.content.weight"], weights["module.tgt_embed.weight"].float())
    weights["module.label_enc.weight"] = torch.zeros(10, 255)
    with pytest.raises(OfficialCheckpointError, match=r"'label_enc.weight': got \[10, 255\], expected \[8, 255\]"):
        import_official(weights, family="dn-deformable-detr", arguments={})


def test_patterns_are_asked_with_every_box() -> None:
    weights = other("dab_deformable") | {"module.patterns_embed.weight": torch.randn(2, 256)}
    detector = import_official(weights, family="dab-deformable-detr", arguments={}).module
    assert detector.settings.num_patterns == 2
    queries = detector.queries(3)
    expected = weights["module.tgt_embed.weight"].float() + weights["module.patterns_embed.weight"][1]
    near(queries.content[2, 7:], expected, 1e-6)
    assert queries.anchors.shape == (3, 14, 4)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ({"num_queries": 300}, "num_queries=300 contradicts tensor 'refpoint_embed.weight' [7, 4]: expected num_qu"),
        ({"num_feature_levels": 4}, "num_feature_levels=4 contradicts tensor 'transformer.level_embed' [3, 256]: exp"),
        ({"two_stage": True}, "two_stage=True contradicts tensor"),
        ({"num_classes": 91}, "num_classes=91 contradicts tensor 'class_embed.0.weight' [7, 256]: expected num_cla"),
    ],
)
def test_arguments_that_contradict_the_tensors_are_named(kind: str, arguments: dict[str, Any], answer: str) -> None:
    with pytest.raises(OfficialCheckpointError, match=re.escape(answer)):
        import_official(other(kind), family=FAMILIES[kind], arguments=arguments)


@pytest.mark.parametrize("counts", [[4, 0, 1], [0, 0, 0]])
def test_other_numbers_of_boxes_groups_and_images_train(counts: list[int]) -> None:
    module = import_official(other("dn_deformable"), family="dn-deformable-detr", arguments={}).module
    assert isinstance(module, Detector)
    boxes = [torch.rand(count, 4) * 0.4 + 0.2 for count in counts]
    targets = Targets.from_lists(boxes, [torch.randint(7, (count,)) for count in counts])
    queries = module.train().training_queries(targets, DenoisingSettings(groups=2))
    assert queries.num_denoising == 2 * max(counts)
    criterion = load_criterion("dn-deformable-detr", {"num_classes": 7, "dec_layers": 3})
    losses = criterion(module(torch.randn(3, 3, 64, 64), None, queries), targets)
    total = weighted_sum(losses, criterion.weights)
    total.backward()
    assert total.isfinite()
    assert (losses["loss_bbox_dn_1"] > 0) == (sum(counts) > 0)
