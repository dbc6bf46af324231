"""Our own recipes, for hundreds to tens of thousands of images, and for the quickstart."""

from __future__ import annotations

from typing import Any

from siamdetr.presets.preset import CONTRASTIVE, DAB_LOSSES, IOU_AWARE_LOSSES, Preset

_SMALL_CONDITIONAL = {
    "variant": "conditional",
    "backbone": "tf_efficientnet_lite0",
    "stride": 16,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "feedforward": 1024,
    "num_queries": 100,
    "dropout": 0.0,
}
_SMALL_DETECTOR = {
    "variant": "deformable",
    "backbone": "tf_efficientnet_lite0",
    "levels": 3,
    "refine": True,
    "dim": 128,
    "heads": 4,
    "encoder_layers": 1,
    "encoder_points": 2,
    "decoder_layers": 3,
    "feedforward": 512,
    "num_queries": 100,
    "dropout": 0.0,
}
_SMALL_DINO = {name: value for name, value in _SMALL_DETECTOR.items() if name != "refine"} | {"variant": "dino"}
_SMALL_RTDETR = {
    "variant": "rtdetr",
    "backbone": "tf_efficientnet_lite0",
    "levels": 3,
    "dim": 128,
    "heads": 4,
    "encoder_layers": 1,
    "fusion_expansion": 0.5,
    "decoder_layers": 3,
    "feedforward": 512,
    "num_queries": 100,
    "dropout": 0.0,
}
_QUICK_DETECTOR = {**_SMALL_DETECTOR, "decoder_layers": 2, "feedforward": 256, "num_queries": 30}
_SMALL_RUN = {
    "images": {"size": 320, "max_size": 533, "augment": "detr"},
    "epochs": 50,
    "batch_size": 8,
    "optimizer": {"lr": 5e-4, "lr_backbone": 5e-5},
    "schedule": {"name": "onecycle", "warmup": 0.05},
    "ema": 0.998,
    "checkpoint_every": 100,
}
_SMALL_METHODS: dict[str, dict[str, Any]] = {
    # All methods on equal terms: the same boxes, augmentation, frozen backbone, class head and matcher.
    "siamese": {"size": 320, "weight_global": 1.0, "weight_region": 1.0},
    "updetr": {"size": 320, "proposals": "edgeboxes", "augment": "detr"},
    "detreg": {"size": 320, "proposals": "edgeboxes", "augment": "detr", "embedding": "last"},
}
# Ours: how queries are told their regions where that was measured to help; the official way is `SiameseSettings`' own.
_TOLD: dict[str, Any] = {
    "conditioning": "content",
    "matching": "group",
    "start": "similar",
    "mask_ratio": 0.5,
    "mask_by": "image",
    "fold_mean": True,
    "inside": 0.8,
    "distinct": 0.7,
    "least_area": 0.02,
}
_SMALL_PRETRAINING = {
    **_SMALL_METHODS,
    "steps": 2_000,
    "batch_size": 8,
    "optimizer": {"lr": 3e-4},
    "schedule": {"name": "onecycle", "warmup": 0.05},
    "checkpoint_every": 100,
}

SMALL: dict[str, Preset] = {
    "small": Preset(
        "hundreds to thousands of images: EfficientNet-Lite0, Deformable DETR of 1+3 layers, about 320 pixels, one-cycle, λ 1 and 1",
        pretrain={"detector": _SMALL_DETECTOR, **_SMALL_PRETRAINING},
        finetune={"detector": _SMALL_DETECTOR, **_SMALL_RUN},
    ),
    "small-conditional": Preset(
        "as `small`, with Conditional DETR of 3+3 layers at stride 16, which needs several times the steps",
        pretrain={"detector": _SMALL_CONDITIONAL, **_SMALL_PRETRAINING},
        finetune={"detector": _SMALL_CONDITIONAL, **_SMALL_RUN},
    ),
    "small-dn": Preset(
        "as `small-conditional`, with DN-DETR: its denoising queries train on every box from the first step",
        pretrain={"detector": {**_SMALL_CONDITIONAL, "variant": "dn"}, **_SMALL_PRETRAINING},
        finetune={"detector": {**_SMALL_CONDITIONAL, "variant": "dn"}, "losses": DAB_LOSSES, **_SMALL_RUN},
    ),
    "small-dn-deformable": Preset(
        "as `small`, with DN-DAB-Deformable-DETR, which also learns from noised copies of every box",
        pretrain={
            "detector": {**_SMALL_DETECTOR, "variant": "dn_deformable"},
            **_SMALL_PRETRAINING,
            "siamese": {**_SMALL_METHODS["siamese"], **_TOLD},
        },
        finetune={"detector": {**_SMALL_DETECTOR, "variant": "dn_deformable"}, "losses": DAB_LOSSES, **_SMALL_RUN},
    ),
    "small-dino": Preset(
        "as `small`, with DINO: queries start from the encoder's best boxes and learn from noised copies of every box",
        pretrain={"detector": _SMALL_DINO, **_SMALL_PRETRAINING},
        finetune={"detector": _SMALL_DINO, "losses": DAB_LOSSES, "denoising": CONTRASTIVE, **_SMALL_RUN},
    ),
    "small-rtdetr": Preset(
        "as `small`, with RT-DETR: convolutions mix the levels, images are squares of 320 pixels; for deployment",
        pretrain={
            "detector": _SMALL_RTDETR,
            **_SMALL_PRETRAINING,
            **{method: {**own, "size": (320, 320)} for method, own in _SMALL_METHODS.items()},
        },
        finetune={
            "detector": _SMALL_RTDETR,
            "losses": IOU_AWARE_LOSSES,
            "denoising": CONTRASTIVE,
            **_SMALL_RUN,
            "images": {"size": (320, 320), "augment": "detr"},
        },
    ),
    "quickstart": Preset(
        "the synthetic data set of `siamdetr quickstart`: 128-pixel images, Deformable DETR of 1+2 layers on three levels, 30 queries",
        pretrain={
            "detector": _QUICK_DETECTOR,
            "siamese": {"size": 128, "weight_global": 1.0, "weight_region": 1.0, "num_regions": 5, "crop_size": 64},
            "updetr": {"size": 128, "num_regions": 5, "crop_size": 64, "proposals": "edgeboxes", "augment": "detr"},
            "detreg": {"size": 128, "num_regions": 15, "crop_size": 64, "embedding": "last"},
            "steps": 300,
            "batch_size": 8,
            "optimizer": {"lr": 5e-4},
            "schedule": {"name": "onecycle", "warmup": 0.1},
            "checkpoint_every": 100,
        },
        finetune={
            "detector": _QUICK_DETECTOR,
            "images": {"size": 128, "max_size": 214, "augment": "flip"},
            "steps": 800,
            "batch_size": 16,
            "freeze": "backbone",
            "optimizer": {"lr": 5e-4},
            "schedule": {"name": "onecycle", "warmup": 0.1},
            "ema": 0.99,
            "checkpoint_every": 200,
        },
    ),
}
