"""config.json of Hugging Face's detectors, and the `DetectorSettings` that correspond to it.

Each class has the fields of transformers' configuration that describe modules, with its defaults for missing ones.
Other fields, about losses or training, are not read.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from siamdetr.errors import OfficialCheckpointError
from siamdetr.official.huggingface.resnets import read_resnet
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
            OfficialCheckpointError: the file needs something that siamdetr does not have.
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
    """Check that a value of config.json is the supported one.

    Raises:
        OfficialCheckpointError: it is another.
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
