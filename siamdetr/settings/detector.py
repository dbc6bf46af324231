"""Settings of a detector, of its denoising queries, and of the losses it is trained with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from siamdetr.settings.base import Settings
from siamdetr.settings.registry import DETECTORS, Activation, Classifier, DetectorEntry, detector_entry, takers

__all__ = ["Activation", "Classifier", "DenoisingSettings", "DetectorSettings", "LossSettings"]


class DetectorSettings(Settings):
    """Everything needed to rebuild a detector's modules; stored in every model file.

    The defaults are those of the official Conditional DETR with 100 queries: 6+6 layers, width 256.
    """

    variant: str = Field("conditional", description="a detector of `siamdetr.settings.registry`; see docs/detectors.md")
    backbone: str = Field("resnet50", description="resnet18/34/50/101 or any timm model with features_only")
    stride: Literal[16, 32] = Field(32, description="of the feature map; 16 is DC5: the last stage dilated")
    num_classes: int = Field(80, ge=1)
    classifier: Classifier = Field("focal", description="softmax: C+1 logits, the last is 'no object'; focal: C logits")
    num_queries: int = Field(100, ge=1)
    max_detections: int | None = Field(
        None, ge=1, description="boxes of an image at most; None: as many as queries, at least 100"
    )
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
    level_points: tuple[int, ...] | None = Field(
        None, description="rtdetr: points of each level, in place of decoder_points, such as [4, 4, 4]"
    )
    encoder_dim: int | None = Field(None, ge=8, description="rtdetr: width of the encoder; None: `dim`")
    encoder_feedforward: int | None = Field(
        None, ge=1, description="rtdetr: of the encoder's self-attention layers; None: `feedforward`"
    )
    fusion_blocks: int = Field(3, ge=0, description="rtdetr: convolutions of each block that joins two levels")
    fusion_expansion: float = Field(1.0, gt=0, le=1, description="rtdetr: their width, as a share of the encoder's")
    learned_content: bool = Field(
        False, description="rtdetr: contents of the queries are learned; False: they are the chosen features"
    )
    column_positions: bool = Field(
        False,
        description="rtdetr: the encoder's positions lie column by column, as in the official code; no difference for squares",
    )
    train_batchnorm: bool = Field(
        False, description="rtdetr: batch norms of a vd backbone train, as in the recipes of 18 and 34 layers"
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

    @field_validator("variant")
    @classmethod
    def _is_registered(cls, variant: str) -> str:
        detector_entry(variant)
        return variant

    @model_validator(mode="after")
    def _levels_and_stages_fit(self) -> DetectorSettings:
        if self.levels == 2:
            raise ValueError("levels is 2, expected 1 (the last map) or 3 to 5 (strides 8, 16, 32 and coarser ones)")
        if self.two_stage and self.entry.learned_boxes:
            raise ValueError(
                f"two_stage is on: the queries of '{self.variant}' start from learned boxes, not from the encoder's; "
                "leave it out, or take the variant 'deformable'"
            )
        if self.two_stage and "refine" in self.entry.options and not self.refine:
            raise ValueError("two_stage is on and refine is off: the encoder's boxes are refined; set refine as well")
        return self

    @model_validator(mode="after")
    def _points_and_widths_fit(self) -> DetectorSettings:
        if self.level_points is not None and (len(self.level_points) != self.levels or min(self.level_points) < 1):
            raise ValueError(
                f"level_points is {list(self.level_points)}, expected a number of points for each of the {self.levels} levels"
            )
        width = self.own_encoder_dim
        if self.encoder_dim is not None and (width % self.heads or width % 4):
            raise ValueError(f"encoder_dim is {width}, expected a width divisible by 4 and by the {self.heads} heads")
        return self

    @model_validator(mode="after")
    def _takes_its_options(self) -> DetectorSettings:
        options = frozenset().union(*(entry.options for entry in DETECTORS.values()))
        changed = {name for name in options if getattr(self, name) != type(self).model_fields[name].default}
        refused = sorted(changed - self.entry.options)
        if refused:
            names = [f"'{name}'" for name in takers(refused[0])]
            have = f"variant {names[0]} has" if len(names) == 1 else f"variants {', '.join(names)} have"
            raise ValueError(f"{', '.join(refused)}: only the {have} such a setting, not '{self.variant}'")
        return self

    @property
    def entry(self) -> DetectorEntry:
        """The registry's entry of the variant."""
        return detector_entry(self.variant)

    @property
    def most_detections(self) -> int:
        """The largest number of boxes of an image."""
        return self.max_detections or max(100, self.num_queries)

    @property
    def coarsest_stride(self) -> int:
        """Pixels per cell of the last feature level; each beyond the backbone's three doubles it."""
        return int(self.stride * 2 ** max(0, self.levels - 3))

    @property
    def proposes(self) -> bool:
        """Whether the queries start from the encoder's best boxes, which then have losses of their own."""
        return self.two_stage or self.entry.proposes

    @property
    def learns_references(self) -> bool:
        """Whether each query has a learned point or box, around which the first layer attends."""
        return (self.entry.learned_boxes or self.entry.learned_points) and not self.two_stage

    @property
    def own_encoder_dim(self) -> int:
        """`encoder_dim`, or the decoder's width."""
        return self.encoder_dim or self.dim

    @property
    def points_of_levels(self) -> tuple[int, ...]:
        """Sampling points of a decoder's head in each level."""
        return self.level_points or (self.decoder_points,) * self.levels

    @property
    def own_activation(self) -> Activation:
        """`activation`, or the variant's."""
        return self.activation or self.entry.activation

    @property
    def own_position_temperature(self) -> float:
        """`position_temperature`, or the variant's."""
        return self.position_temperature or self.entry.position_temperature


class DenoisingSettings(Settings):
    """Noised targets that denoising detectors learn to reconstruct (DN-DETR, arXiv:2203.01305, §4)."""

    groups: int = Field(5, ge=0, description="copies of every target, each in a group of its own; 0: no denoising")
    queries: int = Field(
        0,
        ge=0,
        description="in place of `groups`: as many groups as this number of targets fits, at least one; 0: `groups`",
    )
    label_noise: float = Field(0.2, ge=0, le=1, description="share of the labels that are drawn anew")
    box_noise: float = Field(
        0.4,
        ge=0,
        le=1,
        description="largest move of centre (of half the size) and size (of itself); contrastive: of corners (of half the size)",
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
    iou_aware: bool = Field(
        False,
        description="focal only: a matched query's score is to be the overlap of its box (varifocal loss, as RT-DETR); "
        "focal_alpha is then the weight of negatives",
    )
    matcher_alpha: float = Field(
        0.25, description="official matchers keep .25 whatever focal_alpha is; DAB and DN follow it"
    )
    matcher_gamma: float | None = Field(None, description="of the matching; None: focal_gamma")
    weight_proposals: float = Field(1.0, ge=0, description="of the encoder's proposals: times the weights above")
    giou_eps: float = Field(0.0, ge=0, description="added to the areas that GIoU divides by; official DAB and DN: 1e-6")
