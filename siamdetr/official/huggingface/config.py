"""config.json of Hugging Face's detectors and our `DetectorSettings`, in both directions.

Each class has the fields of transformers' configuration that say something about the modules, with its defaults: what a file
leaves out has them. Whatever else a file says, about losses or training there, is not read.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from siamdetr.errors import OfficialCheckpointError
from siamdetr.official.huggingface.resnets import backbone_config, read_resnet
from siamdetr.settings.detector import DetectorSettings


class HuggingFaceConfig(BaseModel):
    """The fields of all configurations."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    architecture: ClassVar[str]  # the class of transformers
    processor: ClassVar[str]  # its image processor
    default_preprocessing: ClassVar[dict[str, Any]] = {}  # where there is no preprocessor_config.json
    softmax: ClassVar[bool] = False  # one output more than classes, the last is "no object"

    model_type: str
    architectures: tuple[str, ...] | None = None
    id2label: dict[int, str] | None = None
    backbone_config: dict[str, Any] | None = None
    backbone: str | None = None  # of timm, in old files
    use_timm_backbone: bool | None = True
    dilation: bool | None = False
    tie_word_embeddings: bool = True
    auxiliary_loss: bool = False
    position_embedding_type: str = "sine"
    activation_function: str = "relu"
    dropout: float = 0.1
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_attention_heads: int = 8
    decoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048
    decoder_ffn_dim: int = 2048
    num_queries: int = 100
    d_model: int = 256

    def settings(self, *, num_classes: int) -> DetectorSettings:
        """Our settings of this detector with `num_classes` classes.

        Raises:
            OfficialCheckpointError: something is asked for that there is not here.
        """
        require(self.position_embedding_type, "sine", "position_embedding_type")
        require(self.decoder_ffn_dim, self.encoder_ffn_dim, "decoder_ffn_dim beside encoder_ffn_dim")
        require(self.decoder_attention_heads, self.encoder_attention_heads, "decoder_attention_heads beside encoder's")
        backbone, stride = read_resnet(self)
        common: dict[str, Any] = {
            "backbone": backbone,
            "stride": stride,
            "num_classes": num_classes,
            "classifier": "softmax" if self.softmax else "focal",
            "num_queries": self.num_queries,
            "dim": self.d_model,
            "heads": self.encoder_attention_heads,
            "encoder_layers": self.encoder_layers,
            "decoder_layers": self.decoder_layers,
            "feedforward": self.encoder_ffn_dim,
            "dropout": self.dropout,
        }
        try:
            return DetectorSettings.model_validate(common | self._own())
        except ValidationError as error:
            raise OfficialCheckpointError(f"config.json: {' '.join(str(error).split())[:400]}") from error

    def _own(self) -> dict[str, Any]:
        """The variant, and settings that only it has."""
        raise NotImplementedError


def require(got: object, expected: object, name: str) -> None:
    """Refuse a value of config.json that there is no code for.

    Raises:
        OfficialCheckpointError: it is not the expected one.
    """
    if got != expected:
        raise OfficialCheckpointError(
            f"config.json: {name} is {got!r}, expected {expected!r}; others are not supported"
        )


class DetrConfig(HuggingFaceConfig):
    """DETR."""

    architecture = "DetrForObjectDetection"
    processor = "DetrImageProcessor"
    softmax = True
    model_type: str = "detr"

    def _own(self) -> dict[str, Any]:
        require(self.activation_function, "relu", "activation_function")
        return {"variant": "vanilla", "pre_norm": self.model_type == "table-transformer"}


class TableTransformerConfig(DetrConfig):
    """Table Transformer: DETR with pre-norm."""

    architecture = "TableTransformerForObjectDetection"
    model_type: str = "table-transformer"


class ConditionalDetrConfig(HuggingFaceConfig):
    """Conditional DETR."""

    architecture = "ConditionalDetrForObjectDetection"
    processor = "ConditionalDetrImageProcessor"
    model_type: str = "conditional_detr"
    num_queries: int = 300

    def _own(self) -> dict[str, Any]:
        require(self.activation_function, "relu", "activation_function")
        return {"variant": "conditional"}


class DeformableDetrConfig(HuggingFaceConfig):
    """Deformable DETR, also with refinement and in two stages."""

    architecture = "DeformableDetrForObjectDetection"
    processor = "DeformableDetrImageProcessor"
    model_type: str = "deformable_detr"
    num_queries: int = 300
    encoder_ffn_dim: int = 1024
    decoder_ffn_dim: int = 1024
    num_feature_levels: int = 4
    encoder_n_points: int = 4
    decoder_n_points: int = 4
    with_box_refine: bool = False
    two_stage: bool = False
    two_stage_num_proposals: int = 300

    def _own(self) -> dict[str, Any]:
        require(self.activation_function, "relu", "activation_function")
        return {
            "variant": "deformable",
            "levels": self.num_feature_levels,
            "encoder_points": self.encoder_n_points,
            "decoder_points": self.decoder_n_points,
            "refine": self.with_box_refine,
            "two_stage": self.two_stage,
            "num_queries": self.two_stage_num_proposals if self.two_stage else self.num_queries,
        }


class DabDetrConfig(HuggingFaceConfig):
    """DAB-DETR."""

    architecture = "DabDetrForObjectDetection"
    processor = "ConditionalDetrImageProcessor"
    model_type: str = "dab-detr"
    num_queries: int = 300
    d_model: int = Field(256, alias="hidden_size")
    activation_function: Literal["relu", "prelu"] = "prelu"
    temperature_height: int | float = 20
    temperature_width: int | float = 20
    num_patterns: int = 0
    query_dim: int = 4
    keep_query_pos: bool = False
    normalize_before: bool = False
    random_refpoints_xy: bool = False
    sine_position_embedding_scale: float | None = None

    def _own(self) -> dict[str, Any]:
        require(self.temperature_width, self.temperature_height, "temperature_width beside temperature_height")
        for name, expected in (("query_dim", 4), ("keep_query_pos", False), ("normalize_before", False)):
            require(getattr(self, name), expected, name)
        require(self.sine_position_embedding_scale, None, "sine_position_embedding_scale")
        return {
            "variant": "dab",
            "num_patterns": self.num_patterns,
            "activation": self.activation_function,
            "position_temperature": self.temperature_height,
        }


_VARIANTS = ("vanilla", "conditional", "deformable", "dab")


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
    """Refuse a detector that transformers has not, or has otherwise."""
    if settings.variant not in _VARIANTS:
        raise OfficialCheckpointError(
            f"transformers has no '{settings.variant}'; it has {', '.join(_VARIANTS)}. Export it instead: `siamdetr export`"
        )
    if settings.variant == "dab":
        return
    if settings.own_activation != "relu" or settings.own_position_temperature != 10000 or not settings.cell_shift:
        raise OfficialCheckpointError(
            f"transformers has '{settings.variant}' with ReLU, positions of temperature 10000 and of cell centres only, got "
            f"activation={settings.own_activation}, position_temperature={settings.own_position_temperature:g}, "
            f"cell_shift={settings.cell_shift}"
        )


def _config_of(settings: DetectorSettings) -> HuggingFaceConfig:
    _require_known(settings)
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
