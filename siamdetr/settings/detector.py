"""Settings: typed, frozen, closed. An unknown key is an error that names its nearest neighbour."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from siamdetr.settings.base import Settings

Variant = Literal["vanilla", "conditional", "dab", "dn", "deformable", "dab_deformable", "dn_deformable"]
Classifier = Literal["softmax", "focal"]
Activation = Literal["relu", "prelu"]

_OWN_ACTIVATION: dict[Variant, Activation] = {"dab": "prelu", "dn": "prelu"}
_OWN_TEMPERATURE: dict[Variant, float] = {"dab": 20.0, "dn": 20.0}
_ALWAYS_REFINED: tuple[Variant, ...] = ("dab_deformable", "dn_deformable")


class DetectorSettings(Settings):
    """All that is needed to rebuild a detector's modules; stored in every model file.

    The defaults are those of the official Conditional DETR with 100 queries (FACTS: 6+6 layers, width 256).
    """

    variant: Variant = "conditional"
    backbone: str = Field("resnet50", description="resnet18/34/50/101 or any timm model with features_only")
    stride: Literal[16, 32] = Field(32, description="of the feature map; 16 is DC5: the last stage dilated")
    num_classes: int = Field(80, ge=1)
    classifier: Classifier = Field("focal", description="softmax: C+1 logits, the last is 'no object'; focal: C logits")
    num_queries: int = Field(100, ge=1)
    num_patterns: int = Field(
        0, ge=0, description="dab and dn variants: learned contents that every anchor is asked with; 0: none"
    )
    dim: int = Field(256, ge=8)
    heads: int = Field(8, ge=1)
    encoder_layers: int = Field(6, ge=0)
    decoder_layers: int = Field(6, ge=1)
    feedforward: int = Field(2048, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    levels: int = Field(
        1,
        ge=1,
        le=5,
        description="deformable: feature levels; 1: the last map; else maps of stride 8, 16, 32 and coarser ones (official: 4)",
    )
    encoder_points: int = Field(4, ge=1, description="deformable: points a head looks at in each level, in the encoder")
    decoder_points: int = Field(4, ge=1, description="deformable: the same in the decoder")
    refine: bool = Field(
        False,
        description="deformable: each decoder layer starts from the boxes of the one before it; "
        "dab_deformable and dn_deformable always do",
    )
    two_stage: bool = Field(False, description="deformable: queries start from the encoder's best boxes; needs refine")
    cell_shift: bool = Field(
        True,
        description="deformable: positions of cell centres; False: of cell ends, as in official Siamese pretraining",
    )
    pre_norm: bool = Field(
        False,
        description="vanilla: norms before each part and after the encoder, as official UP-DETR; False: after each part",
    )
    activation: Activation | None = Field(
        None,
        description="of the feed-forward parts; None: the variant's own, prelu (learned) for dab and dn, else relu",
    )
    position_temperature: float | None = Field(
        None, gt=1, description="of the cells' sine positions; None: the variant's own, 20 for dab and dn, else 10000"
    )

    @model_validator(mode="after")
    def _check_deformable(self) -> DetectorSettings:
        if self.levels == 2:
            raise ValueError("levels is 2, expected 1 (the last map) or 3 to 5 (strides 8, 16, 32 and coarser ones)")
        if self.two_stage and self.variant in _ALWAYS_REFINED:
            raise ValueError(
                f"two_stage is on: the queries of '{self.variant}' start from learned boxes, not from the encoder's; "
                "leave it out, or take the variant 'deformable'"
            )
        if self.two_stage and not self.refine:
            raise ValueError("two_stage is on and refine is off: the encoder's boxes are refined; set refine as well")
        own = {"levels", "encoder_points", "decoder_points", "refine", "two_stage", "cell_shift"}
        changed = sorted(name for name in own if getattr(self, name) != type(self).model_fields[name].default)
        if changed and "deformable" not in self.variant:
            raise ValueError(
                f"{', '.join(changed)}: only deformable variants have such a setting, not '{self.variant}'"
            )
        return self

    @model_validator(mode="after")
    def _check_pre_norm(self) -> DetectorSettings:
        if self.pre_norm and self.variant != "vanilla":
            raise ValueError(f"pre_norm: only the variant 'vanilla' has such a setting, not '{self.variant}'")
        return self

    @property
    def coarsest_stride(self) -> int:
        """Pixels per cell of the last feature level; each beyond the backbone's three doubles it."""
        return int(self.stride * 2 ** max(0, self.levels - 3))

    @property
    def refines(self) -> bool:
        """Whether each decoder layer has heads of its own and starts from the boxes of the one before it."""
        return self.refine or self.variant in _ALWAYS_REFINED

    @property
    def own_activation(self) -> Activation:
        """`activation`, or the variant's."""
        return self.activation or _OWN_ACTIVATION.get(self.variant, "relu")

    @property
    def own_position_temperature(self) -> float:
        """`position_temperature`, or the variant's."""
        return self.position_temperature or _OWN_TEMPERATURE.get(self.variant, 10000.0)


class DenoisingSettings(Settings):
    """Noised copies of the targets that variants `dn` and `dn_deformable` learn to repair (DN-DETR, arXiv:2203.01305, §4)."""

    groups: int = Field(5, ge=0, description="copies of every target, each in a group of its own; 0: no denoising")
    label_noise: float = Field(0.2, ge=0, le=1, description="share of the labels that are drawn anew")
    box_noise: float = Field(
        0.4, ge=0, le=1, description="largest move of centre (of half the size) and size (of itself)"
    )


class LossSettings(Settings):
    """Costs of the matching and weights of the losses (DETR §3.1; focal: Conditional DETR §4.1)."""

    cost_class: float = 2.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    weight_class: float = 2.0
    weight_bbox: float = 5.0
    weight_giou: float = 2.0
    no_object_weight: float = Field(0.1, description="softmax only: class weight of 'no object'")
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    matcher_alpha: float = Field(
        0.25, description="official matchers keep .25 whatever focal_alpha is; DAB and DN follow it"
    )
    giou_eps: float = Field(0.0, ge=0, description="added to the areas that GIoU divides by; official DAB and DN: 1e-6")
