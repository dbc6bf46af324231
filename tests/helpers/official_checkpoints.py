"""Checkpoints with the official names, made up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siamdetr.models.detector import Detector
from siamdetr.settings.detector import DetectorSettings

OPTIONS: dict[str, Any] = {
    "backbone": "resnet18", "enc_layers": 1, "dec_layers": 2, "dim_feedforward": 32, "hidden_dim": 32, "nheads": 4,
    "dropout": 0.0, "num_classes": 3, "num_queries": 4,
}  # fmt: skip


SIAMESE: dict[str, Any] = {
    "depth": 18, "transformer": "conditional", "num_patches": 2, "encoder_head": True, "costs": [1, 5, 2],
    "weights": {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2, "loss_feature": 3, "loss_enc_global_contra": 0.3},
}  # fmt: skip


def linear(name: str, out_dim: int, in_dim: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(out_dim, in_dim) / in_dim**0.5, f"{name}.bias": torch.randn(out_dim)}


def norm(name: str, dim: int = 32) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(dim), f"{name}.bias": torch.randn(dim)}


def packed(name: str) -> dict[str, Tensor]:
    projections = {f"{name}.in_proj_weight": torch.randn(96, 32), f"{name}.in_proj_bias": torch.randn(96)}
    return projections | linear(f"{name}.out_proj", 32, 32)


def transformer(variant: str) -> dict[str, Tensor]:
    """Official names and shapes of encoder, decoder, queries and input projection for OPTIONS."""
    state = packed("transformer.encoder.layers.0.self_attn")
    layers = ["encoder.layers.0", "decoder.layers.0", "decoder.layers.1"]
    for layer in layers:
        state |= linear(f"transformer.{layer}.linear1", 32, 32) | linear(f"transformer.{layer}.linear2", 32, 32)
        for index in (1, 2, 3) if "decoder" in layer else (1, 2):
            state |= norm(f"transformer.{layer}.norm{index}")
    for index in (0, 1):
        layer = f"transformer.decoder.layers.{index}"
        if variant == "vanilla":
            state |= packed(f"{layer}.self_attn") | packed(f"{layer}.multihead_attn")
        else:
            parts = [
                "sa_qcontent",
                "sa_qpos",
                "sa_kcontent",
                "sa_kpos",
                "sa_v",
                "ca_qcontent",
                "ca_kcontent",
                "ca_kpos",
                "ca_v",
                "ca_qpos_sine",
            ]
            for part in parts + ["ca_qpos"] * (index == 0):
                state |= linear(f"{layer}.{part}_proj", 32, 32)
            state |= linear(f"{layer}.self_attn.out_proj", 32, 32) | linear(f"{layer}.cross_attn.out_proj", 32, 32)
    if variant == "conditional":
        for part, out_dim in (("query_scale", 32), ("ref_point_head", 2)):
            state |= linear(f"transformer.decoder.{part}.layers.0", 32, 32)
            state |= linear(f"transformer.decoder.{part}.layers.1", out_dim, 32)
    state |= norm("transformer.decoder.norm") | {"query_embed.weight": torch.randn(4, 32)}
    return state | {"input_proj.weight": torch.randn(32, 512, 1, 1), "input_proj.bias": torch.randn(32)}


def backbone(prefix: str) -> dict[str, Tensor]:
    body = Detector(
        DetectorSettings(backbone="resnet18", dim=32, heads=4, encoder_layers=0, decoder_layers=1)
    ).backbone.body
    return {
        prefix + name: value + 0.1 * value.std(correction=0) * torch.randn_like(value)
        for name, value in body.state_dict().items()
    }


def heads(prefix: str, logits: int) -> dict[str, Tensor]:
    state = linear(f"{prefix}class_embed", logits, 32)
    for index, out_dim in enumerate((32, 32, 4)):
        state |= linear(f"{prefix}bbox_embed.layers.{index}", out_dim, 32)
    return state


def detector_state(variant: str) -> dict[str, Tensor]:
    return backbone("backbone.0.body.") | transformer(variant) | heads("", 4 if variant == "vanilla" else 3)


def siamese_state() -> dict[str, Tensor]:
    state = backbone("backbone.") | transformer("conditional") | heads("pred_head.", 3) | linear("patch2query", 32, 512)
    state |= linear("pred_head.feature_align.layers.0", 32, 32) | linear("pred_head.feature_align.layers.1", 512, 32)
    for part, linears, norms in (("projector", (0, 3, 6), (1, 4, 7)), ("predictor", (0, 3), (1,))):
        name = f"enc_head.0.{part}.mlp"
        for index in linears:
            state |= linear(f"{name}.{index}", 32, 32)
        for index in norms:
            state |= norm(f"{name}.{index}") | {f"{name}.{index}.num_batches_tracked": torch.tensor(7)}
            state |= {
                f"{name}.{index}.running_mean": torch.randn(32),
                f"{name}.{index}.running_var": torch.rand(32) + 1,
            }
    return state | {"pred_head.criterion.empty_weight": torch.tensor([1.0, 1.0, 0.1])}


class Bomb:
    """An object that would make a folder if it were unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)
