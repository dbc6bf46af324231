"""Backbones: torchvision ResNets and any timm model with `features_only`.

The last feature map or three, batch norms frozen.

Stride 16 is DETR's DC5 for ResNets (the last stage keeps its resolution and is dilated). For timm models it is the
model's own `output_stride=16` or, where there is none, its last feature map at a sixteenth of the image.
"""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from siamdetr.models.backbone.batchnorm import FrozenBatchNorm2d, fold_batchnorm, freeze_batchnorm
from siamdetr.models.backbone.plain_vit import PlainViT, has_one_map
from siamdetr.models.backbone.pyramid import Maps
from siamdetr.models.backbone.resnet_vd import RESNETS_VD, ResNetVd, vd_channels
from siamdetr.models.backbone.same_padding import make_same_padding_symbolic

__all__ = ["RESNETS", "Backbone", "fold_batchnorm", "takes_blocked_layout"]

RESNETS: dict[str, Callable[..., torchvision.models.ResNet]] = {
    "resnet18": torchvision.models.resnet18,
    "resnet34": torchvision.models.resnet34,
    "resnet50": torchvision.models.resnet50,
    "resnet101": torchvision.models.resnet101,
}

FINER_STRIDES = (8, 16)  # of a pyramid's maps before the last
_RESNET_STAGES = ("layer2", "layer3", "layer4")


class Backbone(nn.Module):
    """Images [B, 3, H, W] to their last feature map [B, C, h, w], or to a pyramid of three.

    Random weights; `siamdetr.models.backbone.weights.load_backbone_weights` fills them. Stem and first stage of a
    ResNet never train, as in DETR; of a timm model only the batch norms are frozen.

    Args:
        name: resnet18/34/50/101, the same with "vd" at the end (RT-DETR's), or a timm model.
        stride: 32 or 16, pixels of the image per cell of the last map.
        pyramid: also the maps of strides 8 and 16 (C3 and C4) before the last one.
        train_batchnorm: batch norms of a vd network train, with statistics of the batch, and so does its stem.
    Raises:
        ValueError: there is no such model, or it has no map of that stride.

    Attributes: `channels` and `strides` of each map, finest first; `num_channels` and `stride` of the last one.
    """

    def __init__(self, name: str, *, stride: int = 32, pyramid: bool = False, train_batchnorm: bool = False) -> None:
        super().__init__()
        self.name = name
        self.stride = stride
        self.strides = (*FINER_STRIDES, stride) if pyramid else (stride,)
        if name in RESNETS_VD:
            self.body: nn.Module = ResNetVd(name, self.strides, frozen=not train_batchnorm)
            self.channels = vd_channels(name, len(self.strides))
        elif train_batchnorm:
            raise ValueError(
                f"backbone: train_batchnorm is on, which only {', '.join(RESNETS_VD)} have, not '{name}'; leave it out"
            )
        else:
            self.body, self.channels = _resnet(name, self.strides) if name in RESNETS else _timm(name, self.strides)
        self.num_channels = self.channels[-1]
        self._channels_last = getattr(self.body, "output_fmt", "NCHW") == "NHWC"

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode; frozen batch norms keep their statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and not any(weight.requires_grad for weight in module.parameters()):
                module.eval()
        return self

    def forward(self, images: Tensor) -> Maps:
        """[B, 3, H, W] float, normalised -> [B, C, h, w], h = ceil(H / stride) for ResNets.

        Of a pyramid a tuple of three.
        """
        if isinstance(self.body, nn.Sequential):
            maps = []
            for part_name, part in self.body.named_children():
                images = part(images)
                if part_name in _RESNET_STAGES:
                    maps.append(images)
        else:
            maps = list(self.body(images))
        maps = [one.permute(0, 3, 1, 2) if self._channels_last else one for one in maps]
        return maps[-1] if len(self.strides) == 1 else tuple(maps)

    @property
    def stride8_channels(self) -> int | None:
        """Channels of `stride8`; None: this backbone computes no such map."""
        if isinstance(self.body, nn.Sequential):
            return self.num_channels // 4
        return self.channels[0] if self.strides[0] == FINER_STRIDES[0] else None

    def stride8(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C, h, w], the map of stride 8 (C3), also if `forward` does not return it.

        In a ResNet no later layer is computed.
        """
        if isinstance(self.body, nn.Sequential):
            for part_name, part in self.body.named_children():
                images = part(images)
                if part_name == _RESNET_STAGES[0]:
                    break
            return images
        finest: Tensor = self(images)[0]
        return finest


def takes_blocked_layout(backbone: Backbone, images: Tensor, dtype: torch.dtype) -> bool:
    """Whether a frozen backbone is faster with images in oneDNN's own layout (`Tensor.to_mkldnn`).

    On processors ResNet-50 and -101 are a quarter faster in it than channels last, in float32; the smaller ones and
    bfloat16 gain nothing, and timm models pad by hand, which that layout does not know.
    """
    wanted = backbone.name in ("resnet50", "resnet101") and dtype == torch.float32
    has_onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return wanted and images.device.type == "cpu" and has_onednn


def _resnet(name: str, strides: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    """A torchvision ResNet without its classifier, under its own names of parameters."""
    network = RESNETS[name](weights=None, norm_layer=FrozenBatchNorm2d)
    names = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    body = nn.Sequential(OrderedDict((part, getattr(network, part)) for part in names))
    if strides[-1] == 16:
        _dilate(network.layer4)
    network.conv1.requires_grad_(False)
    network.layer1.requires_grad_(False)
    last = network.fc.in_features
    return body, (last // 4, last // 2, last)[-len(strides) :]


def _dilate(stage: nn.Module) -> None:
    """Let a stage keep its resolution.

    Each 3x3 convolution after the one that lost its stride is dilated by 2.

    Ours: also for the basic blocks of ResNet-18 and -34, where torchvision offers none. In bottlenecks it is
    torchvision's.
    """
    lost_stride = False
    for convolution in stage.modules():
        if not isinstance(convolution, nn.Conv2d):
            continue
        if lost_stride and convolution.kernel_size == (3, 3):
            convolution.dilation = convolution.padding = (2, 2)
        if convolution.stride == (2, 2):
            convolution.stride = (1, 1)
            lost_stride = True


def _timm(name: str, strides: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    """A timm model's last map of each of the wanted strides."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*RESNETS, *RESNETS_VD, *timm.list_models()], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"take one of {', '.join(RESNETS)} or a timm model"
        raise ValueError(f"backbone: there is no model '{name}'; {hint}")
    body = create_timm_body(name, strides, pretrained=False)
    freeze_batchnorm(body)
    make_same_padding_symbolic(body)
    if isinstance(body, PlainViT):
        return body, (body.width,) * len(strides)
    return body, tuple(body.feature_info.channels())


def create_timm_body(name: str, strides: tuple[int, ...], *, pretrained: bool) -> Any:
    """The timm model that gives one map of each wanted stride.

    `pretrained` asks timm for its weights (a download).

    Raises:
        ValueError: the model has no feature map of one of the strides.
    """
    if strides == (16,):
        try:
            body: Any = timm.create_model(
                name, pretrained=pretrained, features_only=True, out_indices=(-1,), output_stride=16
            )
            if body.feature_info.reduction()[-1] == 16:
                return body
        except (TypeError, NotImplementedError, AssertionError):
            pass  # this family cannot be dilated: an earlier map will do
    probe: Any = timm.create_model(name, pretrained=False, features_only=True)
    if has_one_map(probe):
        return _plain(name, strides, pretrained=pretrained)
    reductions = probe.feature_info.reduction()
    missing = [str(stride) for stride in strides if stride not in reductions or strides.count(stride) > 1]
    if missing:
        raise ValueError(
            f"backbone: expected '{name}' to have a feature map of stride {' and '.join(missing)}, got strides {reductions}; "
            "take another stride or backbone"
        )
    last = tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in strides)
    return timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=last)


def _plain(name: str, strides: tuple[int, ...], *, pretrained: bool) -> PlainViT:
    """A model of one map, for images of any size where it can be asked for that."""
    options: Any = {"pretrained": pretrained, "features_only": True, "out_indices": (-1,)}
    try:
        return PlainViT(timm.create_model(name, dynamic_img_size=True, **options), strides)
    except TypeError:  # its positions need no size, as those of DINOv3
        return PlainViT(timm.create_model(name, **options), strides)
