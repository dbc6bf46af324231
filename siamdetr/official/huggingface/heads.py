"""Heads that transformers shares: between the decoder and the detector, and between layers.

A file may have a shared tensor under one or all of its names; here every head has one name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from siamdetr.errors import OfficialCheckpointError
from siamdetr.official.huggingface.config import DeformableDetrConfig, HuggingFaceConfig

_DECODER = "model.decoder."


def no_heads_to_untie(tensors: Mapping[str, Tensor], config: HuggingFaceConfig) -> dict[str, Tensor]:
    """The same tensors: this detector shares no heads."""
    return dict(tensors)


def untie_dab(tensors: Mapping[str, Tensor], config: HuggingFaceConfig) -> dict[str, Tensor]:
    """DAB-DETR: the decoder's `bbox_embed` is the detector's `bbox_predictor`."""
    return _merge(tensors, {"bbox_embed": "bbox_predictor"})


def untie_deformable(tensors: Mapping[str, Tensor], config: HuggingFaceConfig) -> dict[str, Tensor]:
    """Deformable DETR: the decoder's heads are the detector's; one class head may stand for all layers.

    transformers ties the class heads of all layers even where refinement gives each layer its own. Such a file has only
    the first.

    Raises:
        OfficialCheckpointError: two copies of a shared tensor differ, or a tensor that is not shared is missing.
    """
    assert isinstance(config, DeformableDetrConfig)
    merged = _merge(tensors, {"bbox_embed": "bbox_embed", "class_embed": "class_embed"})
    count = config.decoder_layers + config.two_stage
    for head in ("class_embed", "bbox_embed"):
        for name in [name for name in merged if name.startswith(f"{head}.0.")]:
            copies = [name.replace(".0.", f".{layer}.", 1) for layer in range(1, count)]
            if config.with_box_refine:
                _repeat(merged, name, copies, tied=config.tie_word_embeddings and head == "class_embed")
            else:
                _collapse(merged, name, copies)
    return merged


def untie_rtdetr(tensors: Mapping[str, Tensor], config: HuggingFaceConfig) -> dict[str, Tensor]:
    """RT-DETR: the decoder's heads are the detector's; version 1 names them below the decoder only."""
    return _merge(tensors, {"bbox_embed": "bbox_embed", "class_embed": "class_embed"})


def _merge(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The decoder's heads under the names of the detector's.

    Raises:
        OfficialCheckpointError: the two differ.
    """
    merged = dict(tensors)
    for name, tensor in tensors.items():
        match = re.fullmatch(rf"{re.escape(_DECODER)}({'|'.join(names)})(\..+)", name)
        if match:
            own = names[match[1]] + match[2]
            if own in merged and not torch.equal(merged[own], tensor):
                raise OfficialCheckpointError(
                    f"tensors '{own}' and '{name}' differ, expected one shared head: it was trained untied "
                    "(tie_word_embeddings false), for which there is no detector here"
                )
            merged[own] = merged.pop(name)
    return merged


def _repeat(merged: dict[str, Tensor], name: str, copies: list[str], *, tied: bool) -> None:
    """Use the first layer's head for all layers, if the file has no other."""
    missing = [copy for copy in copies if copy not in merged]
    if tied and missing == copies:
        merged |= dict.fromkeys(copies, merged[name])
    elif missing:
        raise OfficialCheckpointError(
            f"the checkpoint lacks '{missing[0]}', a head of its own layer; save it anew with transformers, or take a whole file"
        )


def _collapse(merged: dict[str, Tensor], name: str, copies: list[str]) -> None:
    """Keep one head for all layers, if the file lists it for each."""
    for copy in copies:
        if copy in merged and not torch.equal(merged.pop(copy), merged[name]):
            raise OfficialCheckpointError(
                f"tensors '{name}' and '{copy}' differ, but with_box_refine is false: expected one head for all layers; "
                "correct config.json"
            )
