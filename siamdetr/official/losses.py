"""Criteria under the option names of the official repositories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from siamdetr.models.criterion.losses import DetectionCriterion
from siamdetr.settings.detector import Classifier, LossSettings
from siamdetr.settings.pretext import DETRegSettings, SiameseSettings, UPDETRSettings
from siamdetr.settings.registry import DETECTORS

CLASSIFIERS: dict[str, Classifier] = {
    "detr": "softmax",
    "conditional-detr": "focal",
    "deformable-detr": "focal",
    "dab-detr": "focal",
    "dn-detr": "focal",
    "dab-deformable-detr": "focal",
    "dn-deformable-detr": "focal",
    "dino": "focal",
    "rtdetr": "focal",
    "siamese-detr": "softmax",
    "up-detr": "softmax",
    "detreg": "focal",
}
# Official defaults of the classes' cost and weight.
CLASS_COEFFICIENTS = {
    "detr": (1.0, 1.0),
    "conditional-detr": (2.0, 2.0),
    "deformable-detr": (2.0, 2.0),
    "dab-detr": (2.0, 1.0),
    "dn-detr": (2.0, 1.0),
    "dab-deformable-detr": (2.0, 1.0),
    "dn-deformable-detr": (2.0, 1.0),
    "dino": (2.0, 1.0),
    "rtdetr": (2.0, 1.0),
    "siamese-detr": (1.0, 1.0),
    "up-detr": (1.0, 1.0),
    "detreg": (2.0, 2.0),
}
# Whose matchers use the loss's focal alpha (the others keep .25), and whose GIoU divides by areas plus 1e-6.
_OF_DAB = ("dab-detr", "dn-detr", "dab-deformable-detr", "dn-deformable-detr", "dino")
_ENTRIES = {entry.family: entry for entry in DETECTORS.values() if entry.family is not None}
T = TypeVar("T")
SIAMESE_CLASSES = 2  # logits: 0 never occurs, 1 object, 2 no object


def load_criterion(family: str, arguments: Mapping[str, Any]) -> DetectionCriterion:
    """The criterion of an official repository.

    Args:
        family: a key of `CLASSIFIERS`; of `siamese-detr` its class and box losses; of detectors that denoise or propose
            boxes also the losses of these.
        arguments: official options: `num_classes`, `dec_layers`, `set_cost_class`, `set_cost_bbox`, `set_cost_giou`,
            `cls_loss_coef`, `bbox_loss_coef`, `giou_loss_coef`, `eos_coef`, `focal_alpha`, `interm_loss_coef`; or in
            short `costs` (class, bbox, giou) and `weights` by loss name (`loss_ce`, `loss_bbox`, `loss_giou`). Missing
            ones have the official defaults; other options are ignored.
    Raises:
        ValueError: the family is unknown, or `num_classes` is missing.
    """
    classifier = _of_family(CLASSIFIERS, family)
    if "num_classes" not in arguments and family != "siamese-detr":
        raise ValueError(f"load_criterion: {family} needs 'num_classes' in its arguments; got {sorted(arguments)}")
    if arguments.get("no_interm_box_loss", False):
        raise ValueError(
            "load_criterion: no_interm_box_loss=True, expected False; proposals always have box losses here"
        )
    entry = _ENTRIES.get(family)
    proposes = entry is not None and entry.proposes
    return DetectionCriterion(
        _rtdetr_settings(arguments) if family == "rtdetr" else loss_settings(family, arguments),
        classifier,
        int(arguments.get("num_classes", SIAMESE_CLASSES)),
        num_layers=_num_layers(arguments),
        denoising=entry is not None and entry.denoises,
        contrastive=entry is not None and entry.contrastive,
        box_parts=entry is not None and entry.box_parts,
        proposals=proposes or bool(arguments.get("two_stage", arguments.get("enc", False))),
        proposal_classes=proposes,
    )


def loss_settings(family: str, arguments: Mapping[str, Any]) -> LossSettings:
    """Costs and weights from official options; see `load_criterion`."""
    default_cost, default_weight = _of_family(CLASS_COEFFICIENTS, family)
    names = ("set_cost_class", "set_cost_bbox", "set_cost_giou")
    costs = arguments.get(
        "costs", [arguments.get(name, value) for name, value in zip(names, (default_cost, 5, 2), strict=True)]
    )
    weights = arguments.get("weights", {})
    _refuse_other_denoising_weights(weights)
    alpha = arguments.get("focal_alpha", 0.25)
    return LossSettings(
        cost_class=costs[0],
        cost_bbox=costs[1],
        cost_giou=costs[2],
        weight_class=weights.get("loss_ce", arguments.get("cls_loss_coef", default_weight)),
        weight_bbox=weights.get("loss_bbox", arguments.get("bbox_loss_coef", 5.0)),
        weight_giou=weights.get("loss_giou", arguments.get("giou_loss_coef", 2.0)),
        no_object_weight=arguments.get("eos_coef", 0.1),
        focal_alpha=alpha,
        matcher_alpha=alpha if family in _OF_DAB else 0.25,
        weight_proposals=arguments.get("interm_loss_coef", 1.0),
        giou_eps=1e-6 if family in _OF_DAB else 0.0,
    )


def _num_layers(arguments: Mapping[str, Any]) -> int:
    """Decoder layers: `dec_layers`, or `num_layers` of RT-DETR, there or in the section of its decoder."""
    sections = [arguments.get(name, {}) for name in ("RTDETRTransformerv2", "RTDETRTransformer")]
    found = [given["num_layers"] for given in (arguments, *sections) if "num_layers" in given]
    return int(arguments.get("dec_layers", found[0] if found else 6))


def _rtdetr_settings(arguments: Mapping[str, Any]) -> LossSettings:
    """Costs and weights of RT-DETR's criterion and matcher, which have options of their own.

    Args:
        arguments: `costs` and `weights` (`loss_vfl`, `loss_bbox`, `loss_giou`) as in `load_criterion`, `alpha`,
            `gamma`, `matcher_alpha`, `matcher_gamma`.
    """
    for name, only in (("boxes_weight_format", None), ("share_matched_indices", False), ("losses", ["vfl", "boxes"])):
        given = arguments.get(name, only)
        if (list(given) if isinstance(given, tuple) else given) != only:
            raise ValueError(f"load_criterion: {name}={given!r}, expected {only!r}; others are not supported")
    costs, weights = arguments.get("costs", [2.0, 5.0, 2.0]), arguments.get("weights", {})
    return LossSettings(
        cost_class=costs[0],
        cost_bbox=costs[1],
        cost_giou=costs[2],
        weight_class=weights.get("loss_vfl", 1.0),
        weight_bbox=weights.get("loss_bbox", 5.0),
        weight_giou=weights.get("loss_giou", 2.0),
        iou_aware=True,
        focal_alpha=arguments.get("alpha", 0.75),
        focal_gamma=arguments.get("gamma", 2.0),
        matcher_alpha=arguments.get("matcher_alpha", 0.25),
        matcher_gamma=arguments.get("matcher_gamma", 2.0),
    )


def siamese_settings(arguments: Mapping[str, Any]) -> SiameseSettings:
    """Settings of the pretext from the official Siamese DETR's constructor options.

    Args:
        arguments: `num_patches`, `costs`, `weights` (also `loss_feature` and `loss_enc_global_contra`) and
            `encoder_head` (False: no global loss). The official box jitter is always ±10 %.
    """
    weights = arguments.get("weights", {})
    return SiameseSettings(
        num_regions=int(arguments.get("num_patches", 10)),
        weight_global=weights.get("loss_enc_global_contra", 1.0) if arguments.get("encoder_head", True) else 0.0,
        weight_region=weights.get("loss_feature", 1.0),
        losses=loss_settings("siamese-detr", arguments),
    )


def updetr_settings(arguments: Mapping[str, Any]) -> UPDETRSettings:
    """Settings of the pretext from the official UP-DETR's options.

    Args:
        arguments: `num_patches`, `mask_ratio`, `feature_recon`, `feature_loss_coef`, and those of the losses
            (`load_criterion`).
    """
    weight = arguments.get("weights", {}).get("loss_feature", arguments.get("feature_loss_coef", 1.0))
    return UPDETRSettings(
        num_regions=int(arguments.get("num_patches", 10)),
        mask_ratio=float(arguments.get("mask_ratio", 0.1)),
        weight_feature=weight if arguments.get("feature_recon", True) else 0.0,
        losses=loss_settings("up-detr", arguments),
    )


def detreg_settings(arguments: Mapping[str, Any], classifier: Classifier) -> DETRegSettings:
    """Settings of the pretext from the official DETReg's options.

    Args:
        arguments: `max_prop`, `obj_embedding_head`, `object_embedding_coef`, and those of the losses
            (`load_criterion`).
        classifier: of its detector: `focal` of Deformable DETR, `softmax` of DETR.
    """
    weight = arguments.get("weights", {}).get("loss_object_embedding", arguments.get("object_embedding_coef", 1.0))
    return DETRegSettings(
        num_regions=int(arguments.get("max_prop", 30)),
        classifier=classifier,
        embedding="projection" if arguments.get("obj_embedding_head") == "head" else "c3",
        weight_embedding=weight,
        losses=loss_settings("detreg" if classifier == "focal" else "detr", arguments),
    )


def _refuse_other_denoising_weights(weights: Mapping[str, Any]) -> None:
    """Raise if denoising has other weights than the matched losses: the official code uses the same."""
    for name, weight in weights.items():
        own = name.removeprefix("tgt_")
        if own != name and own in weights and weights[own] != weight:
            raise ValueError(f"load_criterion: {name}={weight}, expected the weight of {own}, {weights[own]}")


def _of_family(table: Mapping[str, T], family: str) -> T:
    if family not in table:
        raise ValueError(f"load_criterion: no family '{family}'; there are: {', '.join(table)}")
    return table[family]
