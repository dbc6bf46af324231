"""config.json of RT-DETR and RT-DETRv2 in transformers and our settings, in both directions."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import ValidationError
from torch import Tensor

from siamdetr.errors import OfficialCheckpointError
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.models.backbone.resnet_vd import RESNETS_VD, vd_channels
from siamdetr.official.huggingface.config import HuggingFaceConfig, require
from siamdetr.official.huggingface.name_tables import DENOISING_LABELS
from siamdetr.settings.detector import DetectorSettings

# Of config.json, with the only value there is code for.
_FIXED: dict[str, Any] = {
    "normalize_before": False, "layer_norm_eps": 1e-5, "batch_norm_eps": 1e-5, "feat_strides": (8, 16, 32),
    "encode_proj_layers": (2,), "activation_function": "silu", "encoder_activation_function": "gelu",
    "decoder_activation_function": "relu", "with_box_refine": True, "learn_initial_query": False, "eval_size": None,
}  # fmt: skip
# Of the backbone's configuration; anything else is another network.
_FIXED_BACKBONE: dict[str, Any] = {
    "embedding_size": 64, "hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False,
    "num_channels": 3,
}  # fmt: skip


class RTDetrConfig(HuggingFaceConfig):
    """RT-DETR."""

    architecture = "RTDetrForObjectDetection"
    processor = "RTDetrImageProcessor"
    default_preprocessing: ClassVar[dict[str, Any]] = {"size": {"height": 640, "width": 640}, "do_normalize": False}
    model_type: str = "rt_detr"
    num_queries: int = 300
    encoder_layers: int = 1
    encoder_ffn_dim: int = 1024
    decoder_ffn_dim: int = 1024
    dropout: float = 0.0
    auxiliary_loss: bool = True
    activation_function: str = "silu"
    encoder_hidden_dim: int = 256
    encoder_in_channels: tuple[int, ...] = (512, 1024, 2048)
    decoder_in_channels: tuple[int, ...] = (256, 256, 256)
    feat_strides: tuple[int, ...] = (8, 16, 32)
    encode_proj_layers: tuple[int, ...] = (2,)
    positional_encoding_temperature: int | float = 10000
    encoder_activation_function: str = "gelu"
    decoder_activation_function: str = "relu"
    eval_size: tuple[int, ...] | None = None
    normalize_before: bool = False
    hidden_expansion: float = 1.0
    layer_norm_eps: float = 1e-5
    batch_norm_eps: float = 1e-5
    num_feature_levels: int = 3
    decoder_n_points: int = 4
    learn_initial_query: bool = False
    with_box_refine: bool = True
    freeze_backbone_batch_norms: bool = True

    def settings(self, *, num_classes: int) -> DetectorSettings:
        """See `HuggingFaceConfig`."""
        for name, expected in _FIXED.items():
            require(getattr(self, name), expected, name)
        require(self.decoder_attention_heads, self.encoder_attention_heads, "decoder_attention_heads beside encoder's")
        require(set(self.decoder_in_channels), {self.encoder_hidden_dim}, "decoder_in_channels")
        temperature = float(self.positional_encoding_temperature)
        try:
            return DetectorSettings(
                variant="rtdetr",
                backbone=_read_backbone(self.backbone_config or {}),
                num_classes=num_classes,
                num_queries=self.num_queries,
                dim=self.d_model,
                heads=self.decoder_attention_heads,
                encoder_layers=self.encoder_layers,
                decoder_layers=self.decoder_layers,
                feedforward=self.decoder_ffn_dim,
                encoder_feedforward=self.encoder_ffn_dim,
                encoder_dim=None if self.encoder_hidden_dim == self.d_model else self.encoder_hidden_dim,
                dropout=self.dropout,
                levels=self.num_feature_levels,
                decoder_points=self.decoder_n_points,
                fusion_expansion=self.hidden_expansion,
                train_batchnorm=not self.freeze_backbone_batch_norms,
                position_temperature=None if temperature == 10000 else temperature,
            )
        except ValidationError as error:
            raise OfficialCheckpointError(f"config.json: {' '.join(str(error).split())[:400]}") from error


class RTDetrV2Config(RTDetrConfig):
    """RT-DETRv2."""

    architecture = "RTDetrV2ForObjectDetection"
    model_type: str = "rt_detr_v2"
    decoder_n_levels: int = 3
    decoder_offset_scale: float = 0.5
    decoder_method: str = "default"

    def settings(self, *, num_classes: int) -> DetectorSettings:
        """See `HuggingFaceConfig`."""
        require(self.decoder_n_levels, self.num_feature_levels, "decoder_n_levels beside num_feature_levels")
        require(self.decoder_offset_scale, 0.5, "decoder_offset_scale")
        require(self.decoder_method, "default", "decoder_method")
        return super().settings(num_classes=num_classes)


def write_rtdetr(settings: DetectorSettings) -> RTDetrConfig:
    """The transformers configuration of an RT-DETR of ours.

    Version 2, which needs two decoder layers; version 1 for fewer.

    Raises:
        OfficialCheckpointError: transformers has no such detector; the text says which part of it.
    """
    known = {"fusion_blocks": 3, "learned_content": False, "levels": 3, "classifier": "focal"}
    other = [f"{name}={getattr(settings, name)}" for name, value in known.items() if getattr(settings, name) != value]
    if len(set(settings.points_of_levels)) > 1:
        other.append(f"level_points={list(settings.points_of_levels)}")
    if settings.backbone not in RESNETS_VD:
        other.append(f"backbone={settings.backbone}")
    if other:
        raise OfficialCheckpointError(
            f"transformers has RT-DETR with {', '.join(RESNETS_VD)}, three levels, equal points, three fusion blocks and "
            f"contents that are chosen features only, got {', '.join(other)}. Export it instead: `siamdetr export`"
        )
    counts, bottlenecks = RESNETS_VD[settings.backbone]
    common: dict[str, Any] = {
        "backbone_config": {
            "model_type": "rt_detr_resnet",
            **_FIXED_BACKBONE,
            "depths": list(counts),
            "hidden_sizes": list(vd_channels(settings.backbone, 4)),
            "layer_type": "bottleneck" if bottlenecks else "basic",
            "out_features": ["stage2", "stage3", "stage4"],
        },
        "encoder_layers": settings.encoder_layers,
        "decoder_layers": settings.decoder_layers,
        "encoder_attention_heads": settings.heads,
        "decoder_attention_heads": settings.heads,
        "encoder_ffn_dim": settings.encoder_feedforward or settings.feedforward,
        "decoder_ffn_dim": settings.feedforward,
        "num_queries": settings.num_queries,
        "d_model": settings.dim,
        "dropout": settings.dropout,
        "encoder_hidden_dim": settings.own_encoder_dim,
        "encoder_in_channels": vd_channels(settings.backbone, 3),
        "decoder_in_channels": (settings.own_encoder_dim,) * 3,
        "positional_encoding_temperature": _whole(settings.own_position_temperature),
        "hidden_expansion": settings.fusion_expansion,
        "decoder_n_points": settings.points_of_levels[0],
        "freeze_backbone_batch_norms": not settings.train_batchnorm,
    }
    return (RTDetrV2Config if settings.decoder_layers > 1 else RTDetrConfig)(**common)


def rtdetr_forms(tensors: dict[str, Tensor], model_type: str, settings: DetectorSettings) -> dict[str, Tensor]:
    """The tensors in transformers' forms: heads also under the decoder, a padding row, and point scales."""
    forms = dict(tensors)
    for name, tensor in tensors.items():
        if name.startswith(("class_embed.", "bbox_embed.")):
            forms[f"model.decoder.{name}"] = tensor
            if model_type == "rt_detr":
                del forms[name]
    labels = tensors[DENOISING_LABELS]
    forms[DENOISING_LABELS] = torch.cat([labels, labels.new_zeros(1, labels.shape[1])])
    if model_type == "rt_detr_v2":
        scale = torch.cat([torch.full((points,), 1 / points) for points in settings.points_of_levels])
        for layer in range(settings.decoder_layers):
            forms[f"model.decoder.layers.{layer}.encoder_attn.n_points_scale"] = scale
    return forms


def require_square(spec: PreprocessingSpec) -> None:
    """Refuse positions by columns for images that are not squares; transformers has no such positions.

    Raises:
        OfficialCheckpointError: images may have another shape.
    """
    if spec.mode != "fixed" or not isinstance(spec.size, tuple) or spec.size[0] != spec.size[1]:
        raise OfficialCheckpointError(
            f"column_positions is on, as in the official RT-DETR, and images are {spec.mode} {spec.size}: transformers places cells "
            "row by row, which is the same for squares only; finetune with images.size=640,640, or with column_positions off"
        )


def _read_backbone(described: dict[str, Any]) -> str:
    depths = tuple(described.get("depths", (3, 4, 6, 3)))
    bottlenecks = described.get("layer_type", "bottleneck") == "bottleneck"
    kind = described.get("model_type", "rt_detr_resnet")
    other = [
        f"{name}={described[name]!r}" for name, value in _FIXED_BACKBONE.items() if described.get(name, value) != value
    ]
    found = next((name for name, shape in RESNETS_VD.items() if shape == (depths, bottlenecks)), None)
    if found is None or other or kind != "rt_detr_resnet":
        raise OfficialCheckpointError(
            f"config.json: the backbone is '{kind}' of {list(depths)} {'bottlenecks' if bottlenecks else 'basic blocks'} "
            f"{' '.join(other)}, expected one of {', '.join(RESNETS_VD)}"
        )
    return found


def _whole(value: float) -> int | float:
    return int(value) if value.is_integer() else value
