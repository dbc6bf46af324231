"""Images are normalised as the backbone's weights expect.

By name, by preset, and measured at the first frozen batch norm.
"""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from helpers.pictures import photos
from torch import Tensor

from siamdetr.api import SiamDETR
from siamdetr.images.normalize import normalize_images
from siamdetr.images.preprocessing import IMAGENET, PLAIN, Normalization
from siamdetr.models.backbone.batchnorm import FrozenBatchNorm2d
from siamdetr.models.backbone.body import RESNETS, Backbone
from siamdetr.models.backbone.normalization import backbone_normalization
from siamdetr.models.backbone.resnet_vd import RESNETS_VD
from siamdetr.models.backbone.weights import load_backbone_weights
from siamdetr.presets import PRESETS

LITE = "tf_efficientnet_lite0"
HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def variance_ratio(backbone: Backbone, normalization: Normalization) -> float:
    """Variance of photos at the first frozen batch norm, over the variance it expects.

    The median over channels.
    """
    norm = next(module for module in backbone.modules() if isinstance(module, FrozenBatchNorm2d))
    seen: list[Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.from_numpy(np.stack([np.array(photo) for photo in photos()])).permute(0, 3, 1, 2)
    with torch.no_grad():
        backbone(normalize_images(images, *normalization))
    handle.remove()
    return float((seen[0].var((0, 2, 3)) / norm.running_var).median())


def backbones_of_presets() -> list[str]:
    stages = [stage for preset in PRESETS.values() for stage in (preset.pretrain, preset.finetune) if stage is not None]
    return sorted({stage.get("detector", {}).get("backbone", "resnet50") for stage in stages})


def test_photos_reach_the_first_batch_norm_with_the_variance_it_expects() -> None:
    backbone = Backbone(LITE).eval()
    load_backbone_weights(backbone, "imagenet")
    assert 0.5 < variance_ratio(backbone, backbone_normalization(LITE)) < 2
    assert variance_ratio(backbone, IMAGENET) > 3  # what every run used before


@pytest.mark.parametrize("name", backbones_of_presets())
def test_the_backbone_of_every_preset_has_the_figures_of_its_weights(name: str) -> None:
    """ImageNet's figures for torchvision's ResNets, none for RT-DETR's, and timm's for the others."""
    if name in RESNETS:
        expected: Normalization | tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    elif name in RESNETS_VD:
        expected = PLAIN
    else:
        configuration = timm.get_pretrained_cfg(name)
        expected = configuration.mean, configuration.std
    assert backbone_normalization(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (LITE, HALF),
        ("tf_mobilenetv3_large_100", HALF),
        ("test_resnet.r160_in1k", HALF),
        ("mobilenetv3_small_050", IMAGENET),
        ("convnext_tiny", IMAGENET),
        ("efficientnet_b0", IMAGENET),
    ],
)
def test_timm_models_have_the_figures_of_their_pretrained_configuration(name: str, expected: Normalization) -> None:
    assert backbone_normalization(name) == expected


def test_a_new_model_is_normalised_as_its_backbone_expects() -> None:
    assert SiamDETR(backbone=LITE, num_classes=1).preprocessing.normalization == HALF
    assert SiamDETR(backbone="resnet18", num_classes=1).preprocessing.normalization == IMAGENET
