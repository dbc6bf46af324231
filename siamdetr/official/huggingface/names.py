"""Translate names of tensors between Hugging Face checkpoints and ours (`name_tables`).

transformers writes the names of its older versions into files and translates them on loading.
Its files, and those of the hub, also have newer names, which `written_name` translates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

from siamdetr.official.huggingface.name_tables import RESNET_NAMES, RESNET_VD_NAMES, Pair
from siamdetr.official.rules import UNUSED_ROW, Aside, Rule

# What stands for a part of a name in a pair: a number, the last part of a layer's tensor, or any rest.
_PARTS = {"{n}": r"\d+", "{m}": r"\d+", "{p}": "weight|bias", "{r}": ".+"}


BACKBONE_PREFIX = "model.backbone.conv_encoder.model."


_NEWER_NAMES: tuple[tuple[str, str], ...] = (
    (r"\.o_proj\.", ".out_proj."),
    (r"(\.layers\.\d+)\.mlp\.(fc\d)", r"\1.\2"),
    (r"^model\.encoder\.aifi\.", "model.encoder.encoder."),
)
_NEWER_CONDITIONAL: tuple[tuple[str, str], ...] = (
    (r"\.self_attn\.(q|k)_(content|pos)_proj\.", r".sa_\1\2_proj."),
    (r"\.encoder_attn\.(q|k)_(content|pos|pos_sine)_proj\.", r".ca_\1\2_proj."),
    (r"(\.decoder\.layers\.\d+)\.self_attn\.v_proj\.", r"\1.sa_v_proj."),
    (r"(\.decoder\.layers\.\d+)\.encoder_attn\.v_proj\.", r"\1.ca_v_proj."),
)
NEWER_NAMES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "detr": _NEWER_NAMES,
    "table-transformer": _NEWER_NAMES,
    "conditional_detr": (*_NEWER_NAMES, *_NEWER_CONDITIONAL),
    "deformable_detr": _NEWER_NAMES,
    "dab-detr": (),
    "rt_detr": _NEWER_NAMES,
    "rt_detr_v2": _NEWER_NAMES,
}
_OF_RTDETR = ("rt_detr", "rt_detr_v2")
_BACKBONE_FORMS = re.compile(r"^model\.backbone\.(?:conv_encoder\.)?model\.(?:_backbone\.)?(.+)")


def written_name(name: str, model_type: str) -> str:
    """Translate the name of a tensor in a file of any version into the name that transformers writes.

    Backbones get torchvision's names.

    Args:
        name: as in a file of any version.
        model_type: of config.json.
    """
    backbone = _BACKBONE_FORMS.match(name)
    if backbone:
        return BACKBONE_PREFIX + _renamed(backbone[1], _resnet_names(model_type), reverse=False)
    for pattern, older in NEWER_NAMES[model_type]:
        name = re.sub(pattern, older, name)
    return name


def backbone_name(name: str, model_type: str, *, own_names: bool) -> str:
    """The whole name that transformers writes for a tensor of the backbone.

    Args:
        name: as torchvision (RT-DETR: the official code) calls it.
        model_type: of config.json.
        own_names: the backbone is transformers' own; False: timm's, which has torchvision's names.
    """
    if model_type in _OF_RTDETR:
        prefix = "model.backbone.model."
    else:
        prefix = BACKBONE_PREFIX + ("_backbone." if model_type == "dab-detr" and not own_names else "")
    return prefix + (_renamed(name, _resnet_names(model_type), reverse=True) if own_names else name)


def _resnet_names(model_type: str) -> tuple[Pair, ...]:
    return RESNET_VD_NAMES if model_type in _OF_RTDETR else RESNET_NAMES


def import_rules(pairs: Sequence[Pair], *, keeps_counters: bool) -> tuple[Rule | Aside, ...]:
    """Rules from their names to ours: the pairs, and a backbone with torchvision's names.

    `keeps_counters`: the backbone's batch norms train, and so count their batches.
    """
    reason = "a counter of batches, which frozen batch norms do not keep"
    in_backbone = re.escape(BACKBONE_PREFIX) + r".*\.num_batches_tracked"
    counters = () if keeps_counters else (Aside(in_backbone, reason),)
    return (
        Aside(r".*\.n_points_scale", "the reciprocal of the number of points, a setting here"),
        *counters,
        *(_rule(pair.theirs, pair.ours) for pair in pairs),
        Rule(re.escape(BACKBONE_PREFIX) + "(.+)", (r"backbone.body.\1",)),
    )


def export_rules(pairs: Sequence[Pair]) -> tuple[Rule, ...]:
    """Rules from our names to theirs: the pairs, without the backbone.

    Our names that share a tensor are in its order.
    """
    return tuple(_rule(ours, (pair.theirs,)) for pair in pairs for ours in pair.ours if ours != UNUSED_ROW)


@cache
def _rule(source: str, targets: tuple[str, ...]) -> Rule:
    pattern = re.escape(source)
    for part, matches in _PARTS.items():
        pattern = pattern.replace(re.escape(part), f"(?P<{part[1]}>{matches})")
    for part in _PARTS:
        targets = tuple(target.replace(part, rf"\g<{part[1]}>") for target in targets)
    return Rule(pattern, targets)


def _renamed(name: str, pairs: Sequence[Pair], *, reverse: bool) -> str:
    """The other name in a pair of single names; a name in no pair does not change."""
    for pair in pairs:
        source, target = (pair.ours[0], pair.theirs) if reverse else (pair.theirs, pair.ours[0])
        rule = _rule(source, (target,))
        match = re.fullmatch(rule.pattern, name)
        if match:
            return match.expand(rule.targets[0])
    return name
