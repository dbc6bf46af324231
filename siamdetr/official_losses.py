"""Criteria under the option names of the official repositories (`siamdetr.official` gives them out)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from siamdetr.config import Classifier, LossSettings, SiameseSettings
from siamdetr.losses import DetectionCriterion

CLASSIFIERS: dict[str, Classifier] = {"detr": "softmax", "conditional-detr": "focal", "siamese-detr": "softmax"}
CLASS_COEFFICIENT = {
    "detr": 1.0,
    "conditional-detr": 2.0,
    "siamese-detr": 1.0,
}  # official defaults, cost and weight alike
T = TypeVar("T")
SIAMESE_CLASSES = 2  # logits: 0 never occurs, 1 object, 2 no object


def load_criterion(family: str, arguments: Mapping[str, Any]) -> DetectionCriterion:
    """The criterion of an official repository.

    Args:
        family: `detr`, `conditional-detr` or `siamese-detr` (its class and box losses).
        arguments: official options: `num_classes`, `dec_layers`, `set_cost_class`, `set_cost_bbox`, `set_cost_giou`,
            `cls_loss_coef`, `bbox_loss_coef`, `giou_loss_coef`, `eos_coef`, `focal_alpha`; or in short `costs` (class, bbox,
            giou) and `weights` by loss name (`loss_ce`, `loss_bbox`, `loss_giou`). Missing ones have the official
            defaults; options about other things are not looked at.
    Raises:
        ValueError: the family is unknown, or `num_classes` is missing.
    """
    classifier = _of_family(CLASSIFIERS, family)
    if "num_classes" not in arguments and family != "siamese-detr":
        raise ValueError(f"load_criterion: {family} needs 'num_classes' in its arguments; got {sorted(arguments)}")
    return DetectionCriterion(
        loss_settings(family, arguments),
        classifier,
        int(arguments.get("num_classes", SIAMESE_CLASSES)),
        num_layers=int(arguments.get("dec_layers", 6)),
    )


def loss_settings(family: str, arguments: Mapping[str, Any]) -> LossSettings:
    """Costs and weights from official options; see `load_criterion`."""
    default = _of_family(CLASS_COEFFICIENT, family)
    names = ("set_cost_class", "set_cost_bbox", "set_cost_giou")
    costs = arguments.get(
        "costs", [arguments.get(name, value) for name, value in zip(names, (default, 5, 2), strict=True)]
    )
    weights = arguments.get("weights", {})
    return LossSettings(
        cost_class=costs[0],
        cost_bbox=costs[1],
        cost_giou=costs[2],
        weight_class=weights.get("loss_ce", arguments.get("cls_loss_coef", default)),
        weight_bbox=weights.get("loss_bbox", arguments.get("bbox_loss_coef", 5.0)),
        weight_giou=weights.get("loss_giou", arguments.get("giou_loss_coef", 2.0)),
        no_object_weight=arguments.get("eos_coef", 0.1),
        focal_alpha=arguments.get("focal_alpha", 0.25),
    )


def siamese_settings(arguments: Mapping[str, Any]) -> SiameseSettings:
    """Settings of the pretext from the official Siamese DETR's constructor options.

    Args:
        arguments: `num_patches`, `costs`, `weights` (also `loss_feature` and `loss_enc_global_contra`) and `encoder_head`
            (False: no global loss). The official box jitter is always ±10 %.
    """
    weights = arguments.get("weights", {})
    return SiameseSettings(
        num_regions=int(arguments.get("num_patches", 10)),
        weight_global=weights.get("loss_enc_global_contra", 1.0) if arguments.get("encoder_head", True) else 0.0,
        weight_region=weights.get("loss_feature", 1.0),
        losses=loss_settings("siamese-detr", arguments),
    )


def _of_family(table: Mapping[str, T], family: str) -> T:
    if family not in table:
        raise ValueError(f"load_criterion: no family '{family}'; there are: {', '.join(table)}")
    return table[family]
