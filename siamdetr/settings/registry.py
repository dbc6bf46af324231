"""The registry of detectors: one `DetectorEntry` each, which holds all that varies between them.

A new detector is one file of `siamdetr/models/` and one entry here. Settings, presets, training, export, reports, tests
and documents read the entry; nothing else lists detectors. This file imports no torch: an entry names its builder as an
entry point does, "module:function", and the module is imported when a detector is built.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

Classifier = Literal["softmax", "focal"]
Activation = Literal["relu", "prelu"]

_LEVELS = frozenset({"levels", "encoder_points", "decoder_points", "cell_shift"})
_OF_RTDETR = frozenset(
    {
        "levels", "decoder_points", "level_points", "encoder_dim", "encoder_feedforward", "fusion_blocks",
        "fusion_expansion", "learned_content", "column_positions", "train_batchnorm",
    }
)  # fmt: skip
_ANCHORS = frozenset({"num_patterns"})


@dataclass(frozen=True)
class DetectorEntry:
    """All facts about a detector that the rest of the code needs.

    Attributes:
        name: as its paper calls it.
        builder: "module:function"; the function takes `(DetectorSettings, channels of the backbone's maps)` and returns
            `siamdetr.models.parts.VariantParts`.
        idea: what is new in it, in a few words.
        paper: its arXiv number; empty: none.
        classifier: of its recipe; a run may choose the other.
        activation: of the feed-forward parts, unless `DetectorSettings.activation` says otherwise.
        position_temperature: of the cells' sine positions, unless the setting of that name says otherwise.
        options: settings that it takes beyond those common to all detectors.
        learned_boxes: its queries are learned boxes, so that it has no use for the encoder's proposals.
        learned_points: its queries attend around learned points, and a pretext may give them others.
        padding_invariant: its answers do not depend on the size that an image is padded to.
        proposes: its queries always start from the encoder's best boxes, which are trained to know classes. Others
            start from them with `two_stage`, where they only know objects.
        denoises: in training its decoder also repairs noised copies of the targets (`DenoisingSettings`).
        contrastive: it also learns to reject copies that are noised more.
        iou_aware: the class loss of its recipe is the varifocal one (`LossSettings.iou_aware`).
        box_parts: its criterion reports the parts of the box loss, as the official one does.
        small_preset: its preset for small data sets; a reduced form of it is tested.
        family: of the official checkpoints that can be imported (`siamdetr convert --family`); None: there are none.
    """

    name: str
    builder: str
    idea: str
    paper: str = ""
    classifier: Classifier = "focal"
    activation: Activation = "relu"
    position_temperature: float = 10000.0
    options: frozenset[str] = frozenset()
    learned_boxes: bool = False
    learned_points: bool = False
    padding_invariant: bool = True
    proposes: bool = False
    denoises: bool = False
    contrastive: bool = False
    iou_aware: bool = False
    box_parts: bool = False
    small_preset: str = "small-conditional"
    family: str | None = None

    @property
    def multi_scale(self) -> bool:
        """Whether it can use several feature levels."""
        return "levels" in self.options


DETECTORS: dict[str, DetectorEntry] = {
    "vanilla": DetectorEntry(
        "DETR",
        "siamdetr.models.detr:build_vanilla",
        "a set of learned queries, matched one to one",
        paper="2005.12872",
        classifier="softmax",
        options=frozenset({"pre_norm"}),
        family="detr",
    ),
    "conditional": DetectorEntry(
        "Conditional DETR",
        "siamdetr.models.conditional_detr:build_conditional",
        "content and position are scored apart",
        paper="2108.06152",
        family="conditional-detr",
    ),
    "deformable": DetectorEntry(
        "Deformable DETR",
        "siamdetr.models.deformable_detr:build_deformable",
        "queries and cells attend to a few points of each feature level",
        paper="2010.04159",
        options=_LEVELS | {"refine", "two_stage"},
        learned_points=True,
        small_preset="small",
        family="deformable-detr",
    ),
    "dab": DetectorEntry(
        "DAB-DETR",
        "siamdetr.models.dab_detr:build_dab",
        "queries are boxes, refined from layer to layer",
        paper="2201.12329",
        activation="prelu",
        position_temperature=20.0,
        options=_ANCHORS,
        learned_boxes=True,
        box_parts=True,
        family="dab-detr",
    ),
    "dn": DetectorEntry(
        "DN-DETR",
        "siamdetr.models.dn_detr:build_dn",
        "in training, noised copies of the targets are repaired beside the matching",
        paper="2203.01305",
        activation="prelu",
        position_temperature=20.0,
        options=_ANCHORS,
        learned_boxes=True,
        denoises=True,
        box_parts=True,
        small_preset="small-dn",
        family="dn-detr",
    ),
    "dab_deformable": DetectorEntry(
        "DAB-Deformable-DETR",
        "siamdetr.models.dab_deformable_detr:build_dab_deformable",
        "queries are boxes, which attend to points around themselves",
        paper="2201.12329",
        options=_LEVELS | _ANCHORS | {"refine"},
        learned_boxes=True,
        padding_invariant=False,
        small_preset="small",
        family="dab-deformable-detr",
    ),
    "dn_deformable": DetectorEntry(
        "DN-DAB-Deformable-DETR",
        "siamdetr.models.dn_detr:build_dn_deformable",
        "DAB-Deformable-DETR with denoising",
        paper="2203.01305",
        options=_LEVELS | _ANCHORS | {"refine"},
        learned_boxes=True,
        padding_invariant=False,
        denoises=True,
        small_preset="small-dn-deformable",
        family="dn-deformable-detr",
    ),
    "dino": DetectorEntry(
        "DINO",
        "siamdetr.models.dino:build_dino",
        "learned contents start from the encoder's best boxes, and learn to reject noised copies of the targets",
        paper="2203.03605",
        position_temperature=20.0,
        options=_LEVELS - {"cell_shift"},
        padding_invariant=False,
        proposes=True,
        denoises=True,
        contrastive=True,
        box_parts=True,
        small_preset="small-dino",
        family="dino",
    ),
    "rtdetr": DetectorEntry(
        "RT-DETR and RT-DETRv2",
        "siamdetr.models.rtdetr:build_rtdetr",
        "convolutions mix three levels cheaply; queries are the cells whose boxes promise to fit",
        paper="2407.17140",
        options=_OF_RTDETR,
        padding_invariant=False,
        proposes=True,
        denoises=True,
        contrastive=True,
        iou_aware=True,
        small_preset="small-rtdetr",
        family="rtdetr",
    ),
}


def detector_entry(variant: str) -> DetectorEntry:
    """The entry of a detector.

    Raises:
        ValueError: there is none of that name; the text names the nearest.
    """
    if variant not in DETECTORS:
        near = difflib.get_close_matches(variant, DETECTORS, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else f"; there are: {', '.join(DETECTORS)}"
        raise ValueError(f"no such detector '{variant}'{hint}")
    return DETECTORS[variant]


def takers(option: str) -> list[str]:
    """The detectors that have a setting."""
    return [variant for variant, entry in DETECTORS.items() if option in entry.options]
