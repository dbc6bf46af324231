"""The official repositories whose checkpoints can be imported, one entry of `IMPORTERS` each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from siamdetr.errors import OfficialCheckpointError
from siamdetr.models.detector import Detector
from siamdetr.official.arguments import (
    DAB_DEFORMABLE_OPTIONS,
    DAB_OPTIONS,
    DEFORMABLE_OPTIONS,
    DETECTOR_OPTIONS,
    DETREG_OPTIONS,
    DINO_OPTIONS,
    SIAMESE_OPTIONS,
    UPDETR_OPTIONS,
    detector_settings,
)
from siamdetr.official.keys import (
    BACKBONE,
    CONDITIONAL,
    DAB,
    DAB_DEFORMABLE,
    DEFORMABLE,
    DEFORMABLE_QUERIES,
    DETREG_OWN,
    DINO,
    DN,
    DN_DEFORMABLE,
    HEADS,
    LAYER_HEADS,
    SHARED_LAYER_HEADS,
    SIAMESE_BACKBONE,
    SIAMESE_DEFORMABLE_QUERIES,
    SIAMESE_OWN,
    UPDETR_OWN,
    VANILLA,
    rtdetr_rules,
)
from siamdetr.official.losses import detreg_settings, siamese_settings, updetr_settings
from siamdetr.official.rtdetr import RTDETR_OPTIONS, rtdetr_settings
from siamdetr.official.rules import Aside, Rule, inside_pretext, without_prefix
from siamdetr.pretext.detreg import PROJECTED, DETReg
from siamdetr.pretext.siamese import SiameseDETR
from siamdetr.pretext.updetr import UPDETR
from siamdetr.settings.detector import Classifier
from siamdetr.settings.registry import DETECTORS

Module = Detector | SiameseDETR | UPDETR | DETReg


@dataclass(frozen=True)
class Importer:
    """How the checkpoints of one family are read."""

    build: Callable[[Mapping[str, Tensor], Mapping[str, Any]], Module]
    rules: Callable[[Module], Sequence[Rule | Aside]]
    options: frozenset[str]
    may_miss: Callable[[Mapping[str, Tensor], str], str | None]  # reason why a file of this form cannot have our tensor
    image_size: tuple[int, int] | None = None  # (height, width) of its images; None: DETR's shortest side
    also_reads: frozenset[str] = frozenset()  # families whose files have the same form as its finetuned detectors


# The first family all of whose marks are in a checkpoint's names. Also families which cannot be imported, for the message.
_MARKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("rtdetr", ("decoder.enc_score_head.", "encoder.pan_blocks.")),
    ("siamese-detr", ("pred_head.",)),
    ("dino", ("label_enc.", "transformer.enc_out_class_embed.")),
    ("dn-deformable-detr", ("label_enc.", "sampling_offsets")),
    ("dn-detr", ("label_enc.",)),
    ("dab-deformable-detr", ("refpoint_embed.", "sampling_offsets")),
    ("dab-detr", ("refpoint_embed.",)),
    ("detreg", ("feature_embed.",)),
    ("siamese-detr", ("patch2query.", "transformer.tgt_embed.")),
    ("deformable-detr", ("sampling_offsets",)),
    ("up-detr", ("patch2query.", "class_embed.")),
    ("siamese-detr", ("patch2query.",)),
    ("conditional-detr", ("ca_qcontent_proj",)),
    ("detr", ("multihead_attn",)),
)


def looks_like(state_dict: Mapping[str, Tensor]) -> str | None:
    """The family that a checkpoint's names belong to, or None."""
    names = "\n".join(state_dict)
    return next((family for family, marks in _MARKS if all(mark in names for mark in marks)), None)


def _build(variant: str, tensors: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Detector:
    """Build the detector of a file without a pretext."""
    classifier = DETECTORS[variant].classifier
    return Detector(detector_settings(arguments, tensors, variant=variant, classifier=classifier))


def _deformable_rules(module: Module) -> Sequence[Rule | Aside]:
    assert isinstance(module, Detector)
    heads = LAYER_HEADS if module.settings.refine else SHARED_LAYER_HEADS
    return (*BACKBONE, *DEFORMABLE, *DEFORMABLE_QUERIES, *heads)


def _build_siamese(tensors: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> SiameseDETR:
    """`transformer` and `depth` are the official pretraining's words for variant and backbone."""
    names = "\n".join(tensors)
    seen = "deformable" if "sampling_offsets" in names else "conditional" if "ca_qcontent_proj" in names else "vanilla"
    variant = arguments.get("transformer", seen)
    if variant != seen:
        raise OfficialCheckpointError(
            f"argument transformer={variant!r}: the tensors are those of '{seen}'; correct the argument, or leave it out"
        )
    options = dict(arguments)
    if "depth" in options:
        options.setdefault("backbone", f"resnet{options['depth']}")
    options.setdefault("num_classes", 2)  # logits: nothing, object, no object
    if "pred_head.class_embed.weight" in tensors:
        options.setdefault("encoder_head", any(name.startswith("enc_head.") for name in tensors))
    settings = detector_settings(options, tensors, variant=seen, classifier="softmax")
    if seen == "deformable":  # whose pretraining places cells as DETR does, without Deformable DETR's half-cell shift
        settings = settings.model_copy(update={"cell_shift": False})
    return SiameseDETR(Detector(settings), siamese_settings(options))


def _siamese_rules(module: Module) -> Sequence[Rule | Aside]:
    assert isinstance(module, SiameseDETR)
    body = {
        "vanilla": VANILLA,
        "conditional": CONDITIONAL,
        # SHARED_LAYER_HEADS: the official converter writes one head a layer, all alike
        "deformable": (*DEFORMABLE, *SIAMESE_DEFORMABLE_QUERIES, *SHARED_LAYER_HEADS),
    }[module.detector.settings.variant]
    heads = (*HEADS, *without_prefix(r"pred_head\.", HEADS))
    return (*SIAMESE_OWN, *inside_pretext((*BACKBONE, *SIAMESE_BACKBONE, *body, *heads)))


def _build_updetr(tensors: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Detector | UPDETR:
    """Build the pretext, or DETR for a finetuned file, which has no patches any more."""
    settings = detector_settings(arguments, tensors, variant="vanilla", classifier="softmax")
    if not any(name.startswith("patch2query.") for name in tensors):
        return Detector(settings)
    seen = any(name.startswith("feature_align.") for name in tensors)
    return UPDETR(Detector(settings), updetr_settings({"feature_recon": seen, **arguments}))


def _updetr_rules(module: Module) -> Sequence[Rule | Aside]:
    body = (*BACKBONE, *VANILLA, *HEADS)
    return body if isinstance(module, Detector) else (*UPDETR_OWN, *inside_pretext(body))


def _build_detreg(tensors: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Detector | DETReg:
    """Build the pretext over Deformable DETR or DETR.

    For a finetuned file, which has no embeddings any more, build the detector.
    """
    deformable = any("sampling_offsets" in name for name in tensors)
    classifier: Classifier = "focal" if deformable else "softmax"
    variant = "deformable" if deformable else "vanilla"
    detector = Detector(detector_settings(arguments, tensors, variant=variant, classifier=classifier))
    last = tensors.get("feature_embed.layers.1.weight")
    if last is None:
        return detector
    seen = "head" if len(last) == PROJECTED else "intermediate"
    told = arguments.get("obj_embedding_head", seen)
    if told != seen:
        raise OfficialCheckpointError(
            f"argument obj_embedding_head={told!r} contradicts tensor 'feature_embed.layers.1.weight' {list(last.shape)}: "
            f"expected obj_embedding_head={seen!r}; correct the argument, or leave it out"
        )
    regions = min(detector.settings.num_queries, arguments.get("max_prop", 30))
    return DETReg(detector, detreg_settings({**arguments, "obj_embedding_head": seen, "max_prop": regions}, classifier))


def _detreg_rules(module: Module) -> Sequence[Rule | Aside]:
    detector = module if isinstance(module, Detector) else module.detector
    of_deformable = detector.settings.variant == "deformable"
    body = _deformable_rules(detector) if of_deformable else (*BACKBONE, *VANILLA, *HEADS)
    return body if isinstance(module, Detector) else (*DETREG_OWN, *inside_pretext(body))


def _without_projection(tensors: Mapping[str, Tensor], name: str) -> str | None:
    """Why SwAV's projection may be missing: official DETReg files do not hold SwAV's network."""
    return "it is SwAV's, whose file fills it: load_projection" if name.startswith("projection.") else None


def _dropped_by_converter(tensors: Mapping[str, Tensor], name: str) -> str | None:
    """Why heads may be missing: the official `convert_to_detr` drops those of the pretext."""
    converted = not any(key.startswith("pred_head.") for key in tensors)
    if converted and name.startswith(("feature_head.", "global_head.", "detector.class_head.")):
        return "the official converter to DETR drops it"
    return None


def _build_rtdetr(tensors: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Detector:
    return Detector(rtdetr_settings(arguments, tensors))


def _rtdetr_rules(module: Module) -> Sequence[Rule | Aside]:
    assert isinstance(module, Detector)
    return rtdetr_rules(module.settings.decoder_layers, counters=module.settings.train_batchnorm)


def _without_counter(tensors: Mapping[str, Tensor], name: str) -> str | None:
    """Why batch counters may be missing: files for inference leave them out."""
    return "a counter of batches, from 0" if name.endswith("num_batches_tracked") else None


def _nothing(tensors: Mapping[str, Tensor], name: str) -> None:
    """No tensor of ours may be missing in the file."""


IMPORTERS: dict[str, Importer] = {
    "detr": Importer(partial(_build, "vanilla"), lambda _: (*BACKBONE, *VANILLA, *HEADS), DETECTOR_OPTIONS, _nothing),
    "conditional-detr": Importer(
        partial(_build, "conditional"), lambda _: (*BACKBONE, *CONDITIONAL, *HEADS), DETECTOR_OPTIONS, _nothing
    ),
    "dab-detr": Importer(partial(_build, "dab"), lambda _: (*BACKBONE, *DAB, *HEADS), DAB_OPTIONS, _nothing),
    "dn-detr": Importer(partial(_build, "dn"), lambda _: (*BACKBONE, *DN, *HEADS), DAB_OPTIONS, _nothing),
    "deformable-detr": Importer(partial(_build, "deformable"), _deformable_rules, DEFORMABLE_OPTIONS, _nothing),
    "dab-deformable-detr": Importer(
        partial(_build, "dab_deformable"), lambda _: (*BACKBONE, *DAB_DEFORMABLE), DAB_DEFORMABLE_OPTIONS, _nothing
    ),
    "dn-deformable-detr": Importer(
        partial(_build, "dn_deformable"), lambda _: (*BACKBONE, *DN_DEFORMABLE), DAB_DEFORMABLE_OPTIONS, _nothing
    ),
    "dino": Importer(partial(_build, "dino"), lambda _: (*BACKBONE, *DINO), DINO_OPTIONS, _nothing),
    "rtdetr": Importer(_build_rtdetr, _rtdetr_rules, RTDETR_OPTIONS, _without_counter, image_size=(640, 640)),
    "siamese-detr": Importer(_build_siamese, _siamese_rules, SIAMESE_OPTIONS, _dropped_by_converter),
    "up-detr": Importer(_build_updetr, _updetr_rules, UPDETR_OPTIONS, _nothing, also_reads=frozenset({"detr"})),
    "detreg": Importer(
        _build_detreg,
        _detreg_rules,
        DETREG_OPTIONS,
        _without_projection,
        also_reads=frozenset({"detr", "deformable-detr"}),
    ),
}
