"""The importer of official checkpoints: every tensor accounted for, every refusal says what to do."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.official_checkpoints import OPTIONS, SIAMESE, Bomb, detector_state, siamese_state
from torch import Tensor

from siamdetr.errors import WeightFileError
from siamdetr.model_file import load_model
from siamdetr.models.detector import Detector
from siamdetr.official.convert import (
    IMPORTERS,
    OfficialCheckpointError,
    convert_file,
    import_official,
    load_criterion,
    load_official,
    read_official_file,
)
from siamdetr.pretext.siamese import SiameseDETR


def converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the official converter to DETR keeps, under its names."""
    kept = {}
    for name, value in state.items():
        if name.startswith("backbone."):
            kept["backbone.0.body." + name.removeprefix("backbone.")] = value
        elif name.startswith(("transformer.", "query_embed", "input_proj", "patch2query")):
            kept[name] = value
        elif name.startswith("pred_head.bbox_embed"):
            kept[name.removeprefix("pred_head.")] = value
    return kept


FAMILIES = {"detr": "vanilla", "conditional-detr": "conditional"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_finds_its_place(family: str) -> None:
    state = detector_state(FAMILIES[family])
    imported = import_official(state, family=family, arguments=OPTIONS)
    assert set(imported.coverage.used) == set(state)
    assert imported.coverage.left_aside == imported.coverage.missing == {}
    module = imported.module
    assert isinstance(module, Detector)
    assert torch.equal(module.box_head.state_dict()["layers.2.weight"], state["bbox_embed.layers.2.weight"])
    keys = state["transformer.encoder.layers.0.self_attn.in_proj_weight"][32:64]
    assert torch.equal(module.encoder.state_dict()["layers.0.attention.key.weight"], keys)


@pytest.mark.parametrize("family", FAMILIES)
def test_arguments_that_are_left_out_are_read_off_the_tensors(family: str) -> None:
    state = detector_state(FAMILIES[family])
    module = load_official(state, family=family, arguments={"nheads": 4, "dropout": 0.0})
    assert isinstance(module, Detector)
    assert module.settings == load_official(state, family=family, arguments=OPTIONS).settings


def test_data_parallel_half_precision_and_counters_are_understood() -> None:
    state = {f"module.{name}": value.half() for name, value in detector_state("vanilla").items()}
    state["module.backbone.0.body.bn1.num_batches_tracked"] = torch.tensor(5)
    imported = import_official(state, family="detr", arguments=OPTIONS)
    assert {p.dtype for p in imported.module.parameters()} == {torch.float32}
    assert list(imported.coverage.left_aside) == ["backbone.0.body.bn1.num_batches_tracked"]
    assert "counter of batches" in imported.coverage.left_aside["backbone.0.body.bn1.num_batches_tracked"]


def test_options_about_other_things_are_ignored_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    arguments = argparse.Namespace(**OPTIONS, lr=1e-4, coco_path="/data", masks=False, position_embedding="sine")
    with caplog.at_level(logging.INFO):
        imported = import_official(detector_state("vanilla"), family="detr", arguments=arguments)
    assert imported.coverage.ignored_options == ("coco_path", "lr")
    assert "options ignored: coco_path, lr" in caplog.text


def test_the_released_pretraining_is_complete() -> None:
    state = siamese_state()
    imported = import_official(state, family="siamese-detr", arguments=OPTIONS | SIAMESE | {"num_classes": 2})
    module = imported.module
    assert isinstance(module, SiameseDETR)
    assert module.detector.settings.variant == "conditional"
    assert dict(imported.coverage.left_aside).keys() == {"pred_head.criterion.empty_weight"}
    assert imported.coverage.missing == {}
    ours = module.state_dict()
    assert torch.equal(ours["region_projection.weight"], state["patch2query.weight"])
    assert torch.equal(ours["global_head.projector.7.running_var"], state["enc_head.0.projector.mlp.7.running_var"])
    assert torch.equal(ours["detector.backbone.body.conv1.weight"], state["backbone.conv1.weight"])


def test_the_converted_pretraining_says_what_the_converter_dropped() -> None:
    state = converted(siamese_state())
    imported = import_official(state, family="siamese-detr", arguments={"nheads": 4, "num_patches": 2})
    assert set(imported.coverage.used) == set(state)
    reasons = imported.coverage.missing
    assert {name.split(".")[0] for name in reasons} == {"feature_head", "global_head", "detector"}
    assert {name for name in reasons if name.startswith("detector.")} == {
        "detector.class_head.weight", "detector.class_head.bias",
    }  # fmt: skip
    assert reasons["detector.class_head.bias"] == "the official converter to DETR drops it"


def test_a_head_without_loss_is_left_aside() -> None:
    arguments = OPTIONS | SIAMESE | {"num_classes": 2, "encoder_head": False}
    imported = import_official(siamese_state(), family="siamese-detr", arguments=arguments)
    assert "no weight in these arguments" in imported.coverage.left_aside["enc_head.0.projector.mlp.0.weight"]


def refusal(state: dict[str, Any], family: str = "detr", **changes: object) -> str:
    with pytest.raises(OfficialCheckpointError) as caught:
        load_official(state, family=family, arguments=OPTIONS | changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("argument", "value", "tensor"),
    [
        ("num_classes", 91, "class_embed.weight' [4, 32]: expected num_classes=3"),
        ("num_queries", 100, "query_embed.weight' [4, 32]: expected num_queries=4"),
        ("hidden_dim", 256, "query_embed.weight' [4, 32]: expected hidden_dim=32"),
        ("dec_layers", 6, "transformer.decoder.layers.1.linear1.weight' [32, 32]: expected dec_layers=2"),
        ("enc_layers", 6, "transformer.encoder.layers.0.linear1.weight' [32, 32]: expected enc_layers=1"),
        ("dim_feedforward", 64, "transformer.decoder.layers.0.linear1.weight' [32, 32]: expected dim_feedforward=32"),
        (
            "backbone",
            "resnet50",
            "backbone.0.body.layer3.1.conv1.weight' [256, 256, 3, 3]: expected backbone='resnet18'",
        ),
    ],
)
def test_arguments_that_contradict_a_tensor_name_both(argument: str, value: object, tensor: str) -> None:
    text = refusal(detector_state("vanilla"), **{argument: value})
    assert text.startswith(f"argument {argument}={value!r} contradicts tensor '{tensor}; correct the argument")


def test_a_tensor_of_another_shape_is_named() -> None:
    state = detector_state("vanilla")
    state["transformer.decoder.layers.1.multihead_attn.in_proj_weight"] = torch.zeros(64, 32)
    text = refusal(state)
    assert (
        "tensor 'transformer.decoder.layers.1.multihead_attn.in_proj_weight': got [64, 32], expected [96, 32]" in text
    )


def test_a_tensor_without_place_is_named() -> None:
    text = refusal(detector_state("vanilla") | {"backbone.1.row_embed.weight": torch.zeros(50, 16)})
    assert (
        "1 tensors have no place in a model of these arguments: backbone.1.row_embed.weight; is it another family"
        in text
    )


def test_a_lost_tensor_is_named() -> None:
    state = detector_state("conditional")
    del state["transformer.decoder.layers.1.ca_v_proj.bias"]
    text = refusal(state, "conditional-detr")
    assert "lacks 1 tensors: decoder.layers.1.cross_attention.value.bias (our names); is it cut" in text


@pytest.mark.parametrize(
    ("state", "likely", "remedy"),
    [
        (lambda: detector_state("conditional"), "conditional-detr", "pass family='conditional-detr'"),
        (siamese_state, "siamese-detr", "pass family='siamese-detr'"),
        (lambda: converted(siamese_state()), "siamese-detr", "pass family='siamese-detr'"),
        (
            lambda: {"transformer.encoder.layers.0.self_attn.sampling_offsets.weight": torch.zeros(1)},
            "deformable-detr",
            "",
        ),
    ],
)
def test_a_checkpoint_of_another_family_is_recognised(state: Any, likely: str, remedy: str) -> None:
    text = refusal(state())
    assert f"expected a checkpoint of 'detr', got tensors that look like '{likely}'; {remedy}" in text


def test_an_unknown_family_lists_the_known_ones() -> None:
    assert refusal({}, "dert") == f"no family 'dert'; there are: {', '.join(IMPORTERS)}"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"pre_norm": True},
            "layers.0.norm2.weight' [32]: expected pre_norm=False; correct the argument, or leave it out",
        ),
        ({"masks": True}, "argument masks=True: expected False; segmentation heads are not supported"),
        ({"position_embedding": "learned"}, "position_embedding='learned': expected 'sine'; learned positions are not"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, object], text: str) -> None:
    assert text in refusal(detector_state("vanilla"), **changes)


def test_pre_norm_is_of_vanilla_detr_alone() -> None:
    text = refusal(detector_state("conditional"), "conditional-detr", pre_norm=True)
    assert text == "argument pre_norm=True: expected False; pre-norm transformers of 'conditional' are not supported"


def test_a_pretext_of_another_transformer_is_refused() -> None:
    text = refusal(siamese_state(), "siamese-detr", **{**SIAMESE, "transformer": "vanilla", "num_classes": 2})
    assert "argument transformer='vanilla': the tensors are those of 'conditional'" in text


def test_a_whole_checkpoint_instead_of_its_state_dict_is_refused() -> None:
    assert "expected a state dict, names to tensors, got no tensor at ['epoch']" in refusal({"epoch": 3})


def test_files_are_read_with_the_options_of_their_run(tmp_path: Path) -> None:
    state, options = detector_state("conditional"), argparse.Namespace(**OPTIONS, lr=1e-4)
    torch.save({"model": state, "args": options, "epoch": 49}, tmp_path / "official.pth")
    file = read_official_file(tmp_path / "official.pth")
    assert file.arguments["num_queries"] == 4
    assert set(file.state_dict) == set(state)


def test_a_file_with_code_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    torch.save({"model": detector_state("vanilla"), "args": Bomb(tmp_path / "boom")}, tmp_path / "bomb.pth")
    with pytest.raises(
        WeightFileError, match=r"bomb\.pth: refused, because loading it would run code .* Save its tensors alone"
    ):
        convert_file(tmp_path / "bomb.pth", family="detr", output=tmp_path / "ours.safetensors")
    assert not (tmp_path / "boom").exists()
    assert not (tmp_path / "ours.safetensors").exists()


@torch.no_grad()
def test_a_converted_file_is_the_official_detector(tmp_path: Path) -> None:
    state = detector_state("conditional")
    torch.save({"model": state, "args": argparse.Namespace(**OPTIONS, lr=1e-4)}, tmp_path / "official.pth")
    coverage = convert_file(tmp_path / "official.pth", family="conditional-detr", output=tmp_path / "ours.safetensors")
    assert coverage.ignored_options == ("lr",)
    ours, metadata = load_model(tmp_path / "ours.safetensors")
    assert metadata.class_names == ("class 0", "class 1", "class 2")
    assert metadata.lineage == ("converted from the official conditional-detr checkpoint official.pth",)
    theirs = load_official(state, family="conditional-detr", arguments=OPTIONS)
    assert isinstance(theirs, Detector)
    images = torch.randn(1, 3, 64, 64)
    outputs = ours(images)
    assert outputs.boxes.isfinite().all()
    assert torch.equal(outputs.boxes, theirs.eval()(images).boxes)


def test_a_converted_pretraining_is_its_detector(tmp_path: Path) -> None:
    torch.save({"state_dict": siamese_state(), "meta": {"epoch": 1}}, tmp_path / "pretrained.pth")
    arguments = {"nheads": 4, "num_patches": 2}
    convert_file(
        tmp_path / "pretrained.pth", family="siamese-detr", arguments=arguments, output=tmp_path / "ours.safetensors"
    )
    detector, metadata = load_model(tmp_path / "ours.safetensors")
    assert detector.settings.num_classes == 2
    assert metadata.class_names == ("nothing", "object")


def test_another_number_of_class_names_is_refused(tmp_path: Path) -> None:
    torch.save(detector_state("vanilla"), tmp_path / "official.pth")
    with pytest.raises(ValueError, match=r"official\.pth: expected 3 class names, got 1"):
        convert_file(
            tmp_path / "official.pth",
            family="detr",
            arguments=OPTIONS,
            output=tmp_path / "ours.safetensors",
            class_names=["cat"],
        )


def test_the_criterion_comes_from_the_same_options() -> None:
    criterion = load_criterion("conditional-detr", OPTIONS | {"cls_loss_coef": 2, "lr": 1})
    assert criterion.weights["loss_class_0"] == 2
