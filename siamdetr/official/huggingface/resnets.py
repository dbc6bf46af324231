"""The ResNets of Hugging Face's detectors: timm's, or transformers' own.

Both are torchvision's with other names.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from siamdetr.errors import OfficialCheckpointError
from siamdetr.models.backbone.body import RESNETS
from siamdetr.settings.detector import DetectorSettings

# Blocks of each stage, and whether they are bottlenecks.
_SHAPES: dict[str, tuple[list[int], bool]] = {
    "resnet18": ([2, 2, 2, 2], False),
    "resnet34": ([3, 4, 6, 3], False),
    "resnet50": ([3, 4, 6, 3], True),
    "resnet101": ([3, 4, 23, 3], True),
}
# Of transformers' ResNetConfig; anything else is another network.
_FIXED = {
    "embedding_size": 64,
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
    "num_channels": 3,
}


class HasBackbone(Protocol):
    """The fields of a configuration that describe its backbone."""

    @property
    def backbone_config(self) -> dict[str, Any] | None: ...
    @property
    def backbone(self) -> str | None: ...
    @property
    def use_timm_backbone(self) -> bool | None: ...
    @property
    def dilation(self) -> bool | None: ...


def read_resnet(config: HasBackbone) -> tuple[str, Literal[16, 32]]:
    """Name and stride of the backbone that a configuration describes.

    Raises:
        OfficialCheckpointError: it is no ResNet whose batch norms are known to be the same.
    """
    described = config.backbone_config or {}
    kind = described.get("model_type", "timm_backbone" if config.use_timm_backbone else "resnet")
    dilated = bool(config.dilation) or described.get("output_stride") == 16
    if kind == "resnet":
        return _of_transformers(described), 16 if dilated else 32
    name = str(described.get("backbone") or config.backbone or "resnet50")
    if kind != "timm_backbone" or name.split(".")[0] not in RESNETS:
        raise OfficialCheckpointError(
            f"config.json: the backbone is '{name if kind == 'timm_backbone' else kind}', expected one of {', '.join(RESNETS)}: "
            "transformers freezes the batch norms of others without their activation"
        )
    return name.split(".")[0], 16 if dilated else 32


def backbone_config(settings: DetectorSettings) -> dict[str, Any]:
    """The backbone's part of config.json: transformers' own ResNet, or timm's if it is dilated.

    transformers' own cannot be dilated.

    Raises:
        OfficialCheckpointError: the backbone is no ResNet.
    """
    if settings.backbone not in _SHAPES:
        raise OfficialCheckpointError(
            f"transformers' detectors take the backbones {', '.join(_SHAPES)}, got '{settings.backbone}': it freezes batch norms "
            "without the activation in them. Export the model instead: `siamdetr export`"
        )
    stages = [2, 3, 4] if settings.levels > 1 else [4]
    if settings.stride == 16:
        return {
            "model_type": "timm_backbone",
            "backbone": settings.backbone,
            "features_only": True,
            "use_pretrained_backbone": False,
            "num_channels": 3,
            "out_indices": stages,
            "output_stride": 16,
        }
    depths, bottleneck = _SHAPES[settings.backbone]
    return {
        "model_type": "resnet",
        **_FIXED,
        "depths": depths,
        "hidden_sizes": [width * (4 if bottleneck else 1) for width in (64, 128, 256, 512)],
        "layer_type": "bottleneck" if bottleneck else "basic",
        "out_features": [f"stage{stage}" for stage in stages],
    }


def _of_transformers(described: dict[str, Any]) -> str:
    depths = described.get("depths", [3, 4, 6, 3])
    bottleneck = described.get("layer_type", "bottleneck") == "bottleneck"
    other = [f"{name}={described[name]!r}" for name, value in _FIXED.items() if described.get(name, value) != value]
    found = next((name for name, shape in _SHAPES.items() if shape == (list(depths), bottleneck)), None)
    if found is None or other:
        raise OfficialCheckpointError(
            f"config.json: the backbone is a ResNet of {depths} {'bottlenecks' if bottleneck else 'basic blocks'} "
            f"{' '.join(other)}, expected one of {', '.join(_SHAPES)}"
        )
    return found
