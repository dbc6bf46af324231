"""Write the configuration of transformers for a detector of ours."""

from __future__ import annotations

from typing import Any

from siamdetr.errors import OfficialCheckpointError
from siamdetr.official.huggingface.config import (
    ConditionalDetrConfig,
    DabDetrConfig,
    DeformableDetrConfig,
    DetrConfig,
    HuggingFaceConfig,
    TableTransformerConfig,
)
from siamdetr.official.huggingface.resnets import backbone_config
from siamdetr.official.huggingface.rtdetr_config import write_rtdetr
from siamdetr.settings.detector import DetectorSettings

_VARIANTS = ("vanilla", "conditional", "deformable", "dab", "rtdetr")


def write_config(settings: DetectorSettings, class_names: tuple[str, ...]) -> tuple[HuggingFaceConfig, dict[str, Any]]:
    """The configuration of transformers for a detector of ours, and the values of its config.json.

    Raises:
        OfficialCheckpointError: transformers has no such detector; the text says which part of it.
    """
    config = _config_of(settings)
    values = config.model_dump(by_alias=True, exclude={"backbone", "use_timm_backbone"})
    return config, values | {
        "architectures": [config.architecture],
        "id2label": {str(label): name for label, name in enumerate(class_names)},
        "label2id": {name: label for label, name in enumerate(class_names)},
        "dtype": "float32",
    }


def _require_known(settings: DetectorSettings) -> None:
    """Check that transformers has this detector in this form."""
    if settings.variant not in _VARIANTS:
        raise OfficialCheckpointError(
            f"transformers has no '{settings.variant}'; it has {', '.join(_VARIANTS)}. Export it instead: `siamdetr export`"
        )
    if settings.variant in ("dab", "rtdetr"):
        return
    if settings.own_activation != "relu" or settings.own_position_temperature != 10000 or not settings.cell_shift:
        raise OfficialCheckpointError(
            f"transformers has '{settings.variant}' with ReLU, positions of temperature 10000 and of cell centres only, got "
            f"activation={settings.own_activation}, position_temperature={settings.own_position_temperature:g}, "
            f"cell_shift={settings.cell_shift}"
        )


def _config_of(settings: DetectorSettings) -> HuggingFaceConfig:
    _require_known(settings)
    if settings.variant == "rtdetr":
        return write_rtdetr(settings)
    softmax = settings.variant == "vanilla"
    if (settings.classifier == "softmax") != softmax:
        raise OfficialCheckpointError(
            f"transformers has '{settings.variant}' with {'softmax' if softmax else 'focal'} only, got "
            f"{settings.classifier}; finetune it so"
        )
    common: dict[str, Any] = {
        "backbone_config": backbone_config(settings),
        "dilation": settings.stride == 16,
        "encoder_layers": settings.encoder_layers,
        "decoder_layers": settings.decoder_layers,
        "encoder_attention_heads": settings.heads,
        "decoder_attention_heads": settings.heads,
        "encoder_ffn_dim": settings.feedforward,
        "decoder_ffn_dim": settings.feedforward,
        "num_queries": settings.num_queries,
        "d_model": settings.dim,
        "dropout": settings.dropout,
        "activation_function": settings.own_activation,
    }
    if settings.variant == "dab":
        temperature = settings.own_position_temperature
        whole = int(temperature) if temperature.is_integer() else temperature
        return DabDetrConfig(
            **common,
            temperature_height=whole,
            temperature_width=whole,
            num_patterns=settings.num_patterns,
        )
    if settings.variant == "deformable":
        return DeformableDetrConfig(
            **common,
            num_feature_levels=settings.levels,
            encoder_n_points=settings.encoder_points,
            decoder_n_points=settings.decoder_points,
            with_box_refine=settings.refine,
            two_stage=settings.two_stage,
            two_stage_num_proposals=settings.num_queries,
        )
    if settings.variant == "conditional":
        return ConditionalDetrConfig(**common)
    return (TableTransformerConfig if settings.pre_norm else DetrConfig)(**common)
