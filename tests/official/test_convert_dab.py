"""Checkpoints of DAB-DETR and DN-DETR of other sizes are imported; what cannot be is refused in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from golden.golden_fill import fill
from helpers.golden import read
from torch import Tensor

from siamdetr.models.detector import Detector
from siamdetr.official.convert import OfficialCheckpointError, import_official, load_criterion

OTHER = {
    "refpoint_embed.weight": [9, 4],
    "class_embed.weight": [4, 256],
    "class_embed.bias": [4],
    "label_enc.weight": [5, 255],
    "transformer.patterns.weight": [3, 256],
}


def checkpoint() -> dict[str, Tensor]:
    """DN-DETR with a third layer in both stacks, 9 queries of 3 patterns, 4 classes."""
    meta, _ = read("A_dn")
    shapes = dict(meta["state_dict"]) | OTHER
    third = {
        key.replace("layers.1.", "layers.2.", 1): shape for key, shape in shapes.items() if "coder.layers.1." in key
    }
    weights = fill(shapes | third, meta["aliases"])
    return {f"module.{key}": value for key, value in weights.items()}


def load(weights: Mapping[str, Tensor], **arguments: Any) -> Detector:
    module = import_official(weights, family="dn-detr", arguments=arguments).module
    assert isinstance(module, Detector)
    return module


def test_settings_are_read_off_the_tensors_and_the_account_is_complete() -> None:
    imported = import_official(checkpoint(), family="dn-detr", arguments={})
    settings = imported.module.settings
    assert (settings.variant, settings.backbone, settings.num_classes) == ("dn", "resnet18", 4)
    assert (settings.num_queries, settings.num_patterns, settings.encoder_layers, settings.decoder_layers) == (
        9,
        3,
        3,
        3,
    )
    assert (settings.own_activation, settings.own_position_temperature, settings.dropout) == ("prelu", 20, 0)
    assert not imported.coverage.missing
    assert {name.split(".")[2] for name in imported.coverage.left_aside} == {"bbox_embed"}


def test_the_last_row_of_label_enc_is_the_content_of_matching_queries() -> None:
    weights = checkpoint()
    queries = load(weights).learned_queries.state_dict()
    rows = weights["module.label_enc.weight"]
    assert torch.equal(queries["labels.weight"], rows[:4])
    assert torch.equal(queries["content.weight"], rows[4:])
    assert load(weights)(torch.zeros(1, 3, 64, 64)).boxes.shape == (3, 1, 27, 4)


def test_a_model_with_relu_has_no_slopes() -> None:
    weights = {key: value for key, value in checkpoint().items() if not key.endswith("activation.weight")}
    assert load(weights).settings.own_activation == "relu"
    with pytest.raises(
        OfficialCheckpointError, match=r"the checkpoint lacks 6 tensors: .*feedforward.activation.weight"
    ):
        load(weights, transformer_activation="prelu")


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (
            {"transformer_activation": "gelu"},
            "transformer_activation='gelu' contradicts tensor 'transformer.decoder.layers.0",
        ),
        (
            {"pe_temperatureH": 20, "pe_temperatureW": 10},
            "pe_temperatureH=20, pe_temperatureW=10: expected one temperature",
        ),
        (
            {"num_patterns": 2},
            "num_patterns=2 contradicts tensor 'transformer.patterns.weight' [3, 256]: expected num_patt",
        ),
        ({"num_classes": 5}, "num_classes=5 contradicts tensor 'class_embed.weight' [4, 256]: expected num_classes=4"),
    ],
)
def test_arguments_that_contradict_the_tensors_are_refused(arguments: dict[str, Any], answer: str) -> None:
    with pytest.raises(OfficialCheckpointError, match=re.escape(answer)):
        load(checkpoint(), **arguments)


def test_an_activation_that_leaves_no_trace_must_be_known() -> None:
    weights = {key: value for key, value in checkpoint().items() if not key.endswith("activation.weight")}
    with pytest.raises(OfficialCheckpointError, match="transformer_activation='gelu': expected 'prelu' or 'relu'"):
        load(weights, transformer_activation="gelu")


def test_a_file_of_dn_detr_is_not_taken_for_dab_detr() -> None:
    with pytest.raises(
        OfficialCheckpointError, match="expected a checkpoint of 'dab-detr', got tensors that look like 'dn-d"
    ):
        import_official(checkpoint(), family="dab-detr", arguments={})


def test_criteria_have_the_official_defaults() -> None:
    settings = load_criterion("dab-detr", {"num_classes": 4, "focal_alpha": 0.4}).settings
    assert (settings.cost_class, settings.weight_class, settings.matcher_alpha, settings.giou_eps) == (2, 1, 0.4, 1e-6)
    assert "loss_giou_dn_4" in load_criterion("dn-detr", {"num_classes": 4}).weights
    with pytest.raises(ValueError, match="tgt_loss_ce=2, expected the weight of loss_ce, 1"):
        load_criterion("dn-detr", {"num_classes": 4, "weights": {"loss_ce": 1, "tgt_loss_ce": 2}})
