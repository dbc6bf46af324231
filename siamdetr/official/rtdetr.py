"""Settings of official RT-DETR and RT-DETRv2 checkpoints, from their YAML files or their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from siamdetr.errors import OfficialCheckpointError
from siamdetr.models.backbone.resnet_vd import RESNETS_VD
from siamdetr.settings.detector import DetectorSettings

_DECODERS = ("RTDETRTransformerv2", "RTDETRTransformer")
_FLAGS = {"num_classes", "eval_spatial_size", "use_focal_loss"}
RTDETR_OPTIONS = frozenset({"PResNet", "HybridEncoder", "RTDETR", *_DECODERS, *_FLAGS})
# Options of which one value is supported, that of the published models.
_FIXED: Mapping[str, Mapping[str, Any]] = {
    "PResNet": {"variant": "d", "num_stages": 4, "return_idx": [1, 2, 3]},
    "HybridEncoder": {"act": "silu", "enc_act": "gelu", "use_encoder_idx": [2], "feat_strides": [8, 16, 32]},
    "decoder": {
        "cross_attn_method": "default", "query_select_method": "default", "activation": "relu",
        "learnt_init_query": False,
    },
}  # fmt: skip


def rtdetr_settings(arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> DetectorSettings:
    """Settings of an official detector: from its YAML file, else from tensors, else official defaults.

    Args:
        arguments: `PResNet`, `HybridEncoder`, `RTDETRTransformerv2` (or `RTDETRTransformer`) and `num_classes`, after
            all includes.
        tensors: by official names.
    Raises:
        OfficialCheckpointError: options that contradict tensors, or ask for what there is not here.
    """
    backbone: dict[str, Any] = dict(arguments.get("PResNet", {}))
    encoder: dict[str, Any] = dict(arguments.get("HybridEncoder", {}))
    decoder: dict[str, Any] = next((dict(arguments[name]) for name in _DECODERS if name in arguments), {})
    for where, section in (("PResNet", backbone), ("HybridEncoder", encoder), ("decoder", decoder)):
        _refuse_others(where, section)
    width = _rows(tensors, "decoder.enc_output.(0|proj).weight")
    encoder_width = _rows(tensors, r"encoder.input_proj.0.(0|conv).weight")
    heads = int(decoder.get("nhead", encoder.get("nhead", 8)))
    layers = _count(tensors, r"decoder\.dec_score_head\.(\d+)\.weight")
    last = decoder.get("eval_idx", -1)  # later layers serve training alone, as in the published r50vd_m
    levels = _count(tensors, r"decoder\.input_proj\.(\d+)\.(?:0|conv)\.weight")
    observed: dict[str, tuple[Mapping[str, Any], int]] = {
        "num_classes": (arguments, _rows(tensors, "decoder.enc_score_head.weight")),
        "num_layers": (decoder, layers),
        "num_levels": (decoder, levels),
        "hidden_dim": (encoder, encoder_width),
    }
    for name, (given, value) in observed.items():
        if given.get(name, value) != value:
            raise OfficialCheckpointError(
                f"argument {name}={given[name]!r} contradicts the tensors: expected {value!r}"
            )
    frozen = backbone.get("freeze_norm", "backbone.conv1.conv1_1.norm.num_batches_tracked" not in tensors)
    points = _points(decoder, tensors, levels, heads)
    return DetectorSettings(
        variant="rtdetr",
        backbone=_backbone(backbone, tensors),
        num_classes=_rows(tensors, "decoder.enc_score_head.weight"),
        num_queries=decoder.get("num_queries", 300),
        dim=width,
        heads=heads,
        encoder_layers=_count(tensors, r"encoder\.encoder\.0\.layers\.(\d+)\.linear1\.weight"),
        decoder_layers=layers if last < 0 else last + 1,
        feedforward=_rows(tensors, r"decoder.decoder.layers.0.linear1.weight"),
        encoder_feedforward=_rows(tensors, r"encoder.encoder.0.layers.0.linear1.weight", none=True),
        encoder_dim=None if encoder_width == width else encoder_width,
        dropout=decoder.get("dropout", 0.0),
        levels=levels,
        decoder_points=points[0] if len(set(points)) == 1 else 4,
        level_points=None if len(set(points)) == 1 else points,
        fusion_blocks=_count(tensors, r"encoder\.fpn_blocks\.0\.bottlenecks\.(\d+)\.conv1\.conv\.weight"),
        fusion_expansion=_rows(tensors, "encoder.fpn_blocks.0.conv1.conv.weight") / encoder_width,
        learned_content="decoder.tgt_embed.weight" in tensors,
        column_positions=True,
        train_batchnorm=not frozen,
        position_temperature=encoder.get("pe_temperature"),
    )


def _refuse_others(where: str, given: Mapping[str, Any]) -> None:
    for name, only in _FIXED[where].items():
        value = given.get(name, only)
        if (list(value) if isinstance(value, tuple) else value) != only:
            raise OfficialCheckpointError(f"argument {name}={value!r}: expected {only!r}; others are not supported")


def _backbone(given: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    counts = tuple(_count(tensors, rf"backbone\.res_layers\.{stage}\.blocks\.(\d+)\..+") for stage in range(4))
    bottlenecks = "backbone.res_layers.0.blocks.0.branch2c.conv.weight" in tensors
    name = next((name for name, shape in RESNETS_VD.items() if shape == (counts, bottlenecks)), None)
    if name is None or f"resnet{given.get('depth', name[6:-2])}vd" != name:
        raise OfficialCheckpointError(
            f"the backbone has stages of {counts} {'bottlenecks' if bottlenecks else 'basic blocks'}, PResNet.depth is "
            f"{given.get('depth', 'not given')}; expected one of {', '.join(RESNETS_VD)}"
        )
    return name


def _points(given: Mapping[str, Any], tensors: Mapping[str, Tensor], levels: int, heads: int) -> tuple[int, ...]:
    """Number of points of each level: from the options, else from the stored scales, else equal.

    A scale is the reciprocal of the number.
    """
    told = given.get("num_points", given.get("num_decoder_points"))
    scales = tensors.get("decoder.decoder.layers.0.cross_attn.num_points_scale")
    total = _rows(tensors, "decoder.decoder.layers.0.cross_attn.attention_weights.weight") // heads
    if told is None and scales is not None:
        found, start = [], 0
        while start < total:
            found.append(round(1 / float(scales[start])))
            start += found[-1]
        points = tuple(found)
    elif told is None:
        points = (total // levels,) * levels
    else:
        points = (told,) * levels if isinstance(told, int) else tuple(told)
    if len(points) != levels or sum(points) != total:
        raise OfficialCheckpointError(
            f"argument num_points={list(points)} contradicts the tensors, whose {levels} levels have {total} points a head"
        )
    return points


def _rows(tensors: Mapping[str, Tensor], pattern: str, *, none: bool = False) -> Any:
    """The length of a tensor's first axis; with `none`, None if there is no such tensor."""
    for name, tensor in tensors.items():
        if re.fullmatch(pattern, name):
            return tensor.shape[0]
    if none:
        return None
    raise OfficialCheckpointError(f"the checkpoint lacks the tensor '{pattern}'; is it cut, or of another family?")


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers occur in the names that match a pattern."""
    return len({match[1] for name in tensors if (match := re.fullmatch(pattern, name))})
