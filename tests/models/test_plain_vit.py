"""Plain vision transformers: maps of three strides from the one they have, for images of any size."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import timm
import torch
from helpers.tiny_models import TINY
from PIL import Image

import siamdetr
from siamdetr.api import SiamDETR
from siamdetr.export.onnx import export_onnx
from siamdetr.images.preprocessing import IMAGENET, PreprocessingSpec
from siamdetr.models.backbone.body import Backbone
from siamdetr.models.backbone.normalization import backbone_normalization
from siamdetr.models.backbone.weights import load_backbone_weights
from siamdetr.models.detector import Detector
from siamdetr.settings.detector import DetectorSettings

# Patches of 16 pixels with learned positions, and with rotary ones as in DINOv3; patches of 14 pixels as in DINOv2.
NAMES = ["test_vit", "vit_tiny_patch16_dinov3_qkvb", "vit_small_patch14_dinov2"]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_maps_have_the_strides_of_a_pyramid_whatever_the_size(name: str) -> None:
    backbone = Backbone(name, pyramid=True).eval()
    assert backbone.strides == (8, 16, 32)
    maps = backbone(torch.rand(1, 3, 70, 101))
    assert [tuple(one.shape[2:]) for one in maps] == [(9, 13), (5, 7), (3, 4)]
    assert {one.shape[1] for one in maps} == {backbone.num_channels}


@torch.no_grad()
def test_an_image_is_padded_with_the_mean_colour() -> None:
    backbone = Backbone("test_vit", pyramid=True).eval()
    image = torch.rand(1, 3, 64, 96)
    image[..., 60:, :] = image[..., 90:] = 0
    for whole, cut in zip(backbone(image), backbone(image[..., :60, :90]), strict=True):
        torch.testing.assert_close(cut, whole[..., : cut.shape[2], : cut.shape[3]])


@torch.no_grad()
def test_the_middle_map_is_that_of_timm() -> None:
    backbone = Backbone("test_vit", stride=16).eval()
    network = timm.create_model("test_vit", features_only=True, out_indices=(-1,), dynamic_img_size=True).eval()
    network.load_state_dict(backbone.body.state_dict())
    image = torch.rand(2, 3, 64, 96)
    torch.testing.assert_close(backbone(image), network(image)[0])


def test_weights_are_read_under_the_names_of_timm(tmp_path: Path) -> None:
    network = timm.create_model("test_vit")
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    backbone = Backbone("test_vit", pyramid=True)
    load_backbone_weights(backbone, tmp_path / "vit.pth")
    torch.testing.assert_close(backbone.body.model.blocks[0].attn.qkv.weight, network.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize(("name", "said"), [("convnext_tiny.dinov3_lvd1689m", True), ("test_vit", False)])
def test_a_licence_that_is_not_permissive_is_said(
    name: str, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = Backbone(name, pyramid=True)
    assert backbone_normalization("convnext_tiny.dinov3_lvd1689m") == IMAGENET
    torch.save(backbone.body.state_dict(), tmp_path / "weights.pth")
    with caplog.at_level(logging.WARNING, logger="siamdetr"):
        load_backbone_weights(backbone, tmp_path / "weights.pth")
    words = "timm gives the licence of its weights as 'dinov3-license', which is none of apache-2.0, bsd-3-clause, mit"
    assert (words in caplog.text) == said


def test_a_detector_on_a_plain_transformer_is_exported_for_every_size(tmp_path: Path) -> None:
    shape = {**TINY, "backbone": "test_vit", "variant": "deformable", "levels": 3, "num_classes": 2, "num_queries": 8}
    detector = Detector(DetectorSettings.model_validate(shape)).eval()
    model = SiamDETR.from_parts(detector, class_names=("a", "b"), preprocessing=PreprocessingSpec.from_size(96))
    gate = export_onnx(model, tmp_path / "bundle").gate
    assert gate is not None
    assert gate.passed
    picture = Image.new("RGB", (130, 70), "orange")
    assert len(siamdetr.load(tmp_path / "bundle").predict(picture, 0.0)) == len(model.predict(picture, 0.0))
