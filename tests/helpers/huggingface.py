"""Small detectors of transformers with random weights, made without network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing here asks the network

import torch
import transformers
from torch import Tensor, nn

SMALL: dict[str, Any] = {
    "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_queries": 6, "id2label": {0: "cat", 1: "dog", 2: "N/A"},
}  # fmt: skip
BASIC = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
BOTTLENECKS = {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"}
LEVELS = ["stage2", "stage3", "stage4"]


def own_resnet(shape: dict[str, Any], stages: list[str]) -> dict[str, Any]:
    return {"backbone_config": {"model_type": "resnet", "embedding_size": 64, "out_features": stages, **shape}}


def vd(shape: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": "rt_detr_resnet", "embedding_size": 64, "out_features": LEVELS, **shape}


VD: dict[str, Any] = {
    "backbone_config": vd(BASIC), "encoder_in_channels": [128, 256, 512], "encoder_hidden_dim": 32,
    "decoder_in_channels": [32] * 3, "hidden_expansion": 0.5, "decoder_ffn_dim": 64,
}  # fmt: skip
TIMM: dict[str, Any] = {"backbone": "resnet18"}
# Name: (model, options). Each model with a backbone of timm, and with transformers' own.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "detr": ("Detr", TIMM),
    "detr, own backbone": ("Detr", own_resnet(BASIC, ["stage4"])),
    "detr, own bottlenecks": ("Detr", own_resnet(BOTTLENECKS, ["stage4"])),
    "detr-dc5": ("Detr", {"backbone": "resnet50", "dilation": True}),
    "detr-dc5, basic blocks": ("Detr", {"backbone": "resnet18", "dilation": True}),
    "pre-norm": ("TableTransformer", TIMM),
    "conditional": ("ConditionalDetr", TIMM),
    "conditional, own backbone": ("ConditionalDetr", own_resnet(BASIC, ["stage4"])),
    "deformable": ("DeformableDetr", TIMM),
    "deformable, own backbone": ("DeformableDetr", own_resnet(BASIC, LEVELS)),
    "deformable of one level": ("DeformableDetr", {**TIMM, "num_feature_levels": 1, "encoder_n_points": 3}),
    "deformable, refined": ("DeformableDetr", {**TIMM, "with_box_refine": True}),
    "deformable, two-stage": (
        "DeformableDetr",
        {**TIMM, "with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 6},
    ),
    "rt-detr": ("RTDetr", VD),
    "rt-detr-v2": ("RTDetrV2", VD),
    "rt-detr-v2, bottlenecks": (
        "RTDetrV2",
        {
            **VD,
            "backbone_config": {**vd(BOTTLENECKS)},
            "encoder_in_channels": [512, 1024, 2048],
            "hidden_expansion": 1.0,
            "encoder_hidden_dim": 48,
            "decoder_in_channels": [48] * 3,
            "freeze_backbone_batch_norms": False,
            "decoder_n_points": 3,
        },
    ),
    "dab": ("DabDetr", TIMM),
    "dab, own backbone": ("DabDetr", own_resnet(BASIC, ["stage4"])),
    "dab with patterns": ("DabDetr", {**TIMM, "num_patterns": 2, "activation_function": "relu"}),
}


def make(name: str, **options: Any) -> Any:
    """The model of a form, in evaluation mode, with weights that all affect the outputs."""
    kind, own = FORMS[name]
    width = {"hidden_size": 32} if kind == "DabDetr" else {"d_model": 32}
    config = getattr(transformers, f"{kind}Config")(**SMALL | width | own | options)
    torch.manual_seed(7)
    model = getattr(transformers, f"{kind}ForObjectDetection")(config).eval()
    scatter(model)
    return model


@torch.no_grad()
def scatter(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.ndim < 4:  # filters are random already; larger ones would make features of thousands
            parameter.add_(0.05 * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(0.2 * torch.rand_like(buffer))


def knows_padding(model: Any) -> bool:
    return not model.config.model_type.startswith("rt_detr")


def batch(*, padded: bool = True) -> tuple[Tensor, Tensor | None]:
    """Two images [2, 3, 96, 128], and where the second is smaller the padding [2, 96, 128], True = padded."""
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    if not padded:
        return images, None
    padding = torch.zeros(2, 96, 128, dtype=torch.bool)
    padding[1, 64:] = padding[1, :, 96:] = True
    return images.masked_fill(padding[:, None], 0), padding


@torch.no_grad()
def theirs(model: Any) -> tuple[Tensor, Tensor]:
    """Logits and boxes of the last layer."""
    images, padding = batch(padded=knows_padding(model))
    mask = {} if padding is None else {"pixel_mask": (~padding).long()}
    outputs = model(images, **mask)
    return outputs.logits, outputs.pred_boxes


def saved(model: Any, folder: Path, *, processor: bool = True, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    if processor:
        transformers.DetrImageProcessor().save_pretrained(folder)
    return folder
