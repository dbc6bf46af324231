"""Importing UP-DETR and DETReg: pretrained, finetuned and pre-norm checkpoints, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.official_checkpoints import OPTIONS, detector_state, heads, linear, norm
from torch import Tensor, nn

from siamdetr.model_file import load_model
from siamdetr.models.detector import Detector, Memory, Queries
from siamdetr.official.convert import (
    OfficialCheckpointError,
    convert_file,
    import_official,
    load_criterion,
    load_official,
)
from siamdetr.pretext.detreg import DETReg
from siamdetr.pretext.updetr import UPDETR

PATCHES = OPTIONS | {"num_classes": 2, "num_patches": 2}


def pre_norm() -> dict[str, Tensor]:
    return norm("transformer.encoder.norm")


def updetr_state(*, feature_recon: bool = True) -> dict[str, Tensor]:
    state = detector_state("vanilla") | heads("", 3) | pre_norm() | linear("patch2query", 32, 512)
    if feature_recon:
        state |= linear("feature_align.layers.0", 32, 32) | linear("feature_align.layers.1", 512, 32)
    return state


def detreg_state(width: int) -> dict[str, Tensor]:
    state = detector_state("vanilla") | heads("", 3) | pre_norm() | linear("feature_embed.layers.0", 32, 32)
    return state | linear("feature_embed.layers.1", width, 32)


def test_an_updetr_pretraining_is_complete() -> None:
    state = updetr_state()
    imported = import_official(state, family="up-detr", arguments=PATCHES | {"feature_loss_coef": 2, "mask_ratio": 0.3})
    module = imported.module
    assert isinstance(module, UPDETR)
    assert set(imported.coverage.used) == set(state)
    assert imported.coverage.left_aside == imported.coverage.missing == {}
    assert imported.coverage.ignored_options == ()
    assert module.detector.settings.pre_norm
    assert (module.settings.num_regions, module.settings.mask_ratio) == (2, 0.3)
    assert module.loss_weights["loss_feature_0"] == 2
    assert torch.equal(module.region_projection.weight, state["patch2query.weight"])
    assert not any(parameter.requires_grad for parameter in module.detector.backbone.parameters())


def test_an_updetr_without_reconstruction_has_no_head_for_it() -> None:
    module = load_official(updetr_state(feature_recon=False), family="up-detr", arguments=PATCHES)
    assert isinstance(module, UPDETR)
    assert module.feature_head is None
    told = import_official(updetr_state(), family="up-detr", arguments=PATCHES | {"feature_recon": False})
    assert "no weight in these arguments" in told.coverage.left_aside["feature_align.layers.0.weight"]


def test_a_detreg_pretraining_is_complete() -> None:
    state = detreg_state(128)  # of C3, which has 128 channels in a ResNet-18 as SwAV's projection has numbers
    imported = import_official(state, family="detreg", arguments=PATCHES | {"obj_embedding_head": "head"})
    module = imported.module
    assert isinstance(module, DETReg)
    assert set(imported.coverage.used) == set(state)
    assert module.settings.embedding == "projection"
    assert module.settings.num_regions == 4  # no more than there are queries
    assert (module.settings.losses.cost_class, module.settings.losses.weight_class) == (
        1,
        1,
    )  # DETR's, not Deformable's
    assert {name.split(".")[0] for name in imported.coverage.missing} == {"projection"}
    assert "it is SwAV's, whose file fills it" in imported.coverage.missing["projection.0.weight"]


@pytest.mark.parametrize("family", ["up-detr", "detreg"])
def test_a_finetuned_file_is_a_detector(family: str, tmp_path: Path) -> None:
    state = detector_state("vanilla") | pre_norm()
    imported = import_official(state, family=family, arguments=OPTIONS)
    assert isinstance(imported.module, Detector)
    assert imported.module.settings.pre_norm
    assert set(imported.coverage.used) == set(state)
    torch.save({"model": state}, tmp_path / "tuned.pth")
    convert_file(tmp_path / "tuned.pth", family=family, arguments={"nheads": 4}, output=tmp_path / "ours.safetensors")
    assert load_model(tmp_path / "ours.safetensors")[1].class_names == ("class 0", "class 1", "class 2")


def test_a_converted_pretraining_knows_objects(tmp_path: Path) -> None:
    torch.save({"model": updetr_state()}, tmp_path / "pretrained.pth")
    arguments = {"nheads": 4, "num_patches": 2}
    convert_file(
        tmp_path / "pretrained.pth", family="up-detr", arguments=arguments, output=tmp_path / "ours.safetensors"
    )
    detector, metadata = load_model(tmp_path / "ours.safetensors")
    assert detector.settings.pre_norm
    assert metadata.class_names == ("nothing", "object")
    assert metadata.lineage == ("converted from the official up-detr checkpoint pretrained.pth",)


@torch.no_grad()
def test_a_pre_norm_transformer_is_pytorchs() -> None:
    """Without positions, which PyTorch's layers do not know; the official names are PyTorch's."""
    state = detector_state("vanilla") | pre_norm()
    module = load_official(state, family="detr", arguments=OPTIONS)
    assert isinstance(module, Detector)
    shape: dict[str, Any] = {"d_model": 32, "nhead": 4, "dim_feedforward": 32, "dropout": 0.0}
    shape |= {"batch_first": True, "norm_first": True}
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(**shape), 1, norm=nn.LayerNorm(32), enable_nested_tensor=False
    )
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**shape), 2, norm=nn.LayerNorm(32))
    for name, theirs in (("encoder", encoder), ("decoder", decoder)):
        prefix = f"transformer.{name}."
        theirs.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    tokens, content = torch.randn(2, 9, 32), torch.randn(2, 4, 32)
    memory = tokens
    for layer in module.encoder.layers:
        memory = layer(memory, torch.zeros_like(tokens), None)
    memory = module.encoder.norm(memory)
    torch.testing.assert_close(memory, encoder(tokens), rtol=0, atol=1e-5)
    decoded = module.decoder(
        Queries(content=content, position=torch.zeros_like(content)),
        Memory(memory, torch.zeros_like(memory), None, ((3, 3),)),
        module.heads,
    )
    torch.testing.assert_close(decoded.hidden[-1], decoder(content, memory), rtol=0, atol=1e-5)


def refusal(state: dict[str, Tensor], family: str, **changes: object) -> str:
    with pytest.raises(OfficialCheckpointError) as caught:
        load_official(state, family=family, arguments=PATCHES | changes)
    return str(caught.value)


def test_another_family_is_recognised() -> None:
    expected = "expected a checkpoint of '{}', got tensors that look like '{}'; pass family='{}'"
    assert refusal(updetr_state(), "detr") == expected.format("detr", "up-detr", "up-detr")
    assert refusal(detreg_state(128), "up-detr") == expected.format("up-detr", "detreg", "detreg")
    assert refusal(detector_state("conditional"), "detreg") == expected.format(
        "detreg", "conditional-detr", "conditional-detr"
    )


def test_arguments_that_contradict_tensors_and_lost_tensors_are_named() -> None:
    assert refusal(updetr_state(), "up-detr", num_classes=91).startswith("argument num_classes=91 contradicts tensor")
    assert (
        "pre_norm=False contradicts tensor 'transformer.encoder.norm.weight' [32]: expected pre_norm=True"
        in refusal(updetr_state(), "up-detr", pre_norm=False)
    )
    text = refusal(detreg_state(128), "detreg", obj_embedding_head="intermediate")
    assert "'feature_embed.layers.1.weight' [128, 32]: expected obj_embedding_head='head'; correct the argument" in text
    state = updetr_state()
    del state["feature_align.layers.1.bias"]
    assert "lacks 1 tensors: feature_head.layers.1.bias (our names); is it cut" in refusal(state, "up-detr")
    assert "num_patches" not in refusal(state, "up-detr")
    with pytest.raises(ValueError, match="UPDETR: 4 queries do not divide among 3 regions; choose num_queries a mult"):
        load_official(updetr_state(), family="up-detr", arguments=PATCHES | {"num_patches": 3})


def test_the_criteria_have_the_official_defaults() -> None:
    weights = load_criterion("up-detr", {"num_classes": 2}).weights
    assert (weights["loss_class"], weights["loss_bbox"], weights["loss_giou"]) == (1, 5, 2)
    assert load_criterion("detreg", {"num_classes": 91}).weights["loss_class"] == 2
