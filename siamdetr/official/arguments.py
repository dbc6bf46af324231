"""Translate official options to our settings, checked against the tensors of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from siamdetr.errors import OfficialCheckpointError
from siamdetr.settings.detector import Activation, DetectorSettings
from siamdetr.settings.registry import detector_entry

# (bottleneck blocks, blocks of the third stage) of each ResNet.
_RESNETS = {(False, 2): "resnet18", (False, 6): "resnet34", (True, 6): "resnet50", (True, 23): "resnet101"}

DETECTOR_OPTIONS = frozenset(
    [
        "backbone",
        "dilation",
        "enc_layers",
        "dec_layers",
        "dim_feedforward",
        "hidden_dim",
        "nheads",
        "dropout",
        "num_classes",
        "num_queries",
        "pre_norm",
        "position_embedding",
        "masks",
    ]
)
DAB_OPTIONS = DETECTOR_OPTIONS | {"num_patterns", "transformer_activation", "pe_temperatureH", "pe_temperatureW"}
DEFORMABLE_OPTIONS = DETECTOR_OPTIONS | {
    "num_feature_levels",
    "enc_n_points",
    "dec_n_points",
    "with_box_refine",
    "two_stage",
}
DAB_DEFORMABLE_OPTIONS = DEFORMABLE_OPTIONS | {"num_patterns"}
# Options of DINO of which one value is supported, that of its published models.
DINO_FIXED: Mapping[str, Any] = {
    "transformer_activation": "relu",
    "num_patterns": 0,
    "embed_init_tgt": True,
    "two_stage_type": "standard",
    "two_stage_add_query_num": 0,
    "two_stage_learn_wh": False,
    "two_stage_pat_embed": 0,
    "two_stage_keep_all_tokens": False,
    "two_stage_bbox_embed_share": False,
    "two_stage_class_embed_share": False,
    "dec_pred_bbox_embed_share": True,
    "dec_pred_class_embed_share": True,
    "decoder_sa_type": "sa",
    "decoder_module_seq": ["sa", "ca", "ffn"],
    "unic_layers": 0,
    "use_detached_boxes_dec_out": False,
    "return_interm_indices": [1, 2, 3],
}
DINO_OPTIONS = DEFORMABLE_OPTIONS | {"pe_temperatureH", "pe_temperatureW", "dn_labelbook_size"} | set(DINO_FIXED)
SIAMESE_OPTIONS = DEFORMABLE_OPTIONS | {"transformer", "depth", "num_patches", "costs", "weights", "encoder_head"}
LOSS_OPTIONS = frozenset(
    [
        "costs",
        "weights",
        "set_cost_class",
        "set_cost_bbox",
        "set_cost_giou",
        "cls_loss_coef",
        "bbox_loss_coef",
        "giou_loss_coef",
        "eos_coef",
        "focal_alpha",
    ]
)
DETREG_OPTIONS = (
    DEFORMABLE_OPTIONS
    | LOSS_OPTIONS
    | {"obj_embedding_head", "object_embedding_coef", "object_embedding_loss", "max_prop"}
)
UPDETR_OPTIONS = DETECTOR_OPTIONS | LOSS_OPTIONS | {"num_patches", "feature_recon", "mask_ratio", "feature_loss_coef"}


@dataclass(frozen=True)
class Fact:
    """The value of an option, as a tensor shows it."""

    value: int | str
    tensor: str
    shape: tuple[int, ...]


def detector_settings(
    arguments: Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
    *,
    variant: str,
    classifier: Literal["softmax", "focal"],
) -> DetectorSettings:
    """Settings of an official detector.

    They come from the arguments, else from the tensors, else they are the official defaults.

    Raises:
        OfficialCheckpointError: arguments contradict tensors, or name an option that is not supported.
    """
    _refuse_unsupported(arguments, variant)
    if variant == "dino":
        _refuse_other_forms_of_dino(arguments)
    entry = detector_entry(variant)
    facts = observe(state_dict, classifier=classifier)
    if variant == "vanilla":
        facts |= _observe_pre_norm(state_dict)
    if entry.multi_scale:
        facts |= observe_deformable(state_dict, heads=arguments.get("nheads", 8), classifier=classifier)
    for name, fact in facts.items():
        if name in arguments and arguments[name] != fact.value:
            raise OfficialCheckpointError(
                f"argument {name}={arguments[name]!r} contradicts tensor '{fact.tensor}' {list(fact.shape)}: expected "
                f"{name}={fact.value!r}; correct the argument, or leave it out"
            )
    known = {name: fact.value for name, fact in facts.items()} | dict(arguments)
    return DetectorSettings(
        variant=variant,
        backbone=known.get("backbone", "resnet50"),
        stride=16 if known.get("dilation") else 32,
        num_classes=known.get("num_classes", 91),
        classifier=classifier,
        num_queries=known.get("num_queries", 300 if entry.multi_scale else 100),
        num_patterns=known.get("num_patterns", 0),
        dim=known.get("hidden_dim", 256),
        heads=known.get("nheads", 8),
        encoder_layers=known.get("enc_layers", 6),
        decoder_layers=known.get("dec_layers", 6),
        feedforward=known.get("dim_feedforward", 1024 if variant == "deformable" else 2048),
        dropout=known.get("dropout", 0.0 if entry.learned_boxes or entry.proposes else 0.1),
        levels=known.get("num_feature_levels", 1),
        encoder_points=known.get("enc_n_points", 4),
        decoder_points=known.get("dec_n_points", 4),
        refine="two_stage" in entry.options and bool(known.get("with_box_refine", False)),
        two_stage="two_stage" in entry.options and bool(known.get("two_stage", False)),
        pre_norm=bool(known.get("pre_norm", False)),
        activation=_activation(known) if entry.activation == "prelu" else None,
        position_temperature=_temperature(known) if entry.position_temperature != 10000.0 else None,
    )


def observe(state_dict: Mapping[str, Tensor], *, classifier: Literal["softmax", "focal"]) -> dict[str, Fact]:
    """Infer options from the tensors; the number of heads, dropout and dilation cannot be inferred."""
    facts: dict[str, Fact] = {}

    def add(option: str, tensor: str, axis: int, less: int = 0) -> None:
        if tensor in state_dict:
            shape = tuple(state_dict[tensor].shape)
            facts[option] = Fact(shape[axis] - less, tensor, shape)

    add("num_queries", "query_embed.weight", 0)
    add("num_queries", "refpoint_embed.weight", 0)
    if "transformer.enc_out_class_embed.weight" in state_dict:
        add("num_queries", "transformer.tgt_embed.weight", 0)
    add("num_patterns", "transformer.patterns.weight", 0)
    add("num_patterns", "patterns_embed.weight", 0)
    add("hidden_dim", "class_embed.weight", 1)
    add("hidden_dim", "query_embed.weight", 1)
    add("dim_feedforward", "transformer.decoder.layers.0.linear1.weight", 0)
    add("num_classes", "class_embed.weight", 0, less=int(classifier == "softmax"))
    add("num_classes", "pred_head.class_embed.weight", 0, less=int(classifier == "softmax"))
    for option, stack in (("enc_layers", "encoder"), ("dec_layers", "decoder")):
        names = [key for key in state_dict if re.fullmatch(rf"transformer\.{stack}\.layers\.\d+\.linear1\.weight", key)]
        if names:
            facts[option] = Fact(len(names), names[-1], tuple(state_dict[names[-1]].shape))
    slope = "transformer.decoder.layers.0.activation.weight"
    if slope in state_dict:
        facts["transformer_activation"] = Fact("prelu", slope, tuple(state_dict[slope].shape))
    return facts | _observe_backbone(state_dict)


def observe_deformable(
    state_dict: Mapping[str, Tensor], *, heads: int, classifier: Literal["softmax", "focal"]
) -> dict[str, Fact]:
    """Infer the options of Deformable DETR beyond `observe`.

    The number of points depends on the number of heads.
    """
    facts: dict[str, Fact] = {}

    def add(option: str, tensor: str, value: Callable[[tuple[int, ...]], int | str]) -> None:
        if tensor in state_dict:
            shape = tuple(state_dict[tensor].shape)
            facts[option] = Fact(value(shape), tensor, shape)

    add("num_feature_levels", "transformer.level_embed", lambda shape: shape[0])
    add("hidden_dim", "transformer.level_embed", lambda shape: shape[1])
    add("num_classes", "class_embed.0.weight", lambda shape: shape[0] - int(classifier == "softmax"))
    if "num_feature_levels" in facts:
        per_point = int(facts["num_feature_levels"].value) * heads
        for option, part in (
            ("enc_n_points", "encoder.layers.0.self_attn"),
            ("dec_n_points", "decoder.layers.0.cross_attn"),
        ):
            add(option, f"transformer.{part}.attention_weights.bias", lambda shape: shape[0] // per_point)
    for option, marks in (
        ("with_box_refine", "transformer.decoder.bbox_embed"),
        ("two_stage", "transformer.enc_output."),
    ):
        found = [name for name in state_dict if name.startswith(marks)]
        shown = found[0] if found else next(iter(state_dict))
        facts[option] = Fact(bool(found), shown, tuple(state_dict[shown].shape))
    return facts


def _observe_pre_norm(state_dict: Mapping[str, Tensor]) -> dict[str, Fact]:
    """Whether the encoder ends in a norm of its own, as with pre-norm."""
    norms = [name for name in state_dict if re.fullmatch(r"transformer\.encoder\..*norm\d?\.weight", name)]
    if not norms:
        return {}
    return {"pre_norm": Fact("transformer.encoder.norm.weight" in norms, norms[-1], tuple(state_dict[norms[-1]].shape))}


def _observe_backbone(state_dict: Mapping[str, Tensor]) -> dict[str, Fact]:
    blocks = [key for key in state_dict if re.fullmatch(r"backbone\.(0\.body\.)?layer3\.\d+\.conv1\.weight", key)]
    bottleneck = any(re.fullmatch(r"backbone\.(0\.body\.)?layer3\.0\.conv3\.weight", key) for key in state_dict)
    name = _RESNETS.get((bottleneck, len(blocks)))
    return {"backbone": Fact(name, blocks[-1], tuple(state_dict[blocks[-1]].shape))} if name else {}


def _refuse_other_forms_of_dino(arguments: Mapping[str, Any]) -> None:
    for name, only in DINO_FIXED.items():
        given = arguments.get(name, only)
        if (list(given) if isinstance(given, tuple) else given) != only:
            raise OfficialCheckpointError(f"argument {name}={given!r}: expected {only!r}; others are not supported")


def _activation(known: Mapping[str, Any]) -> Activation:
    """Only PReLU has a tensor; a file without one and without options counts as ReLU."""
    name = known.get("transformer_activation", "relu")
    if name not in ("relu", "prelu"):
        raise OfficialCheckpointError(
            f"argument transformer_activation={name!r}: expected 'prelu' or 'relu'; others are not supported"
        )
    return "prelu" if name == "prelu" else "relu"


def _temperature(known: Mapping[str, Any]) -> float:
    height, width = known.get("pe_temperatureH", 20), known.get("pe_temperatureW", 20)
    if height != width:
        raise OfficialCheckpointError(
            f"arguments pe_temperatureH={height}, pe_temperatureW={width}: expected one temperature for both; others are not "
            "supported"
        )
    return float(height)


def _refuse_unsupported(arguments: Mapping[str, Any], variant: str) -> None:
    position = arguments.get("position_embedding", "sine")
    if position not in ("sine", "v2"):
        raise OfficialCheckpointError(
            f"argument position_embedding={position!r}: expected 'sine'; learned positions are not supported"
        )
    for name, what in (("pre_norm", f"pre-norm transformers of '{variant}'"), ("masks", "segmentation heads")):
        if arguments.get(name) and not (name == "pre_norm" and variant == "vanilla"):
            raise OfficialCheckpointError(f"argument {name}=True: expected False; {what} are not supported")
