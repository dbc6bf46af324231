"""The papers' recipes.

Sources: the official Siamese DETR configs (arXiv:2303.18144; the λ of the configs, since the supplement's text has them
in an order that cannot be right for both data sets), the official scripts of UP-DETR (arXiv:2011.09094) and DETReg
(arXiv:2106.04550), and the official finetuning scripts of DETR, Conditional DETR, Deformable DETR, DAB-DETR, DN-DETR
and DINO. Batch sizes of pretraining are those of all processes together in the papers; with N processes set batch_size
to that divided by N.
"""

from __future__ import annotations

from siamdetr.presets.preset import CONTRASTIVE, DAB_LOSSES, IOU_AWARE_LOSSES, Preset

_VANILLA = {"variant": "vanilla", "classifier": "softmax", "num_queries": 100}
_CONDITIONAL = {"variant": "conditional", "classifier": "focal", "num_queries": 100}
_DAB = {"variant": "dab", "classifier": "focal", "num_queries": 300, "dropout": 0.0}
_DN = {**_DAB, "variant": "dn"}
_SOFTMAX_LOSSES = {"cost_class": 1.0, "weight_class": 1.0}
_DENOISING = {"groups": 5, "label_noise": 0.2, "box_noise": 0.4}
_DAB_RUN = {
    "losses": DAB_LOSSES,
    "epochs": 50,
    "batch_size": 2,
    "optimizer": {"lr": 1e-4, "lr_backbone": 1e-5, "weight_decay": 1e-4, "clip": 0.1},
    "schedule": {"name": "step", "drop_at": 0.8},
}
_IMAGENET_RUN = {
    "steps": 300_000,
    "batch_size": 256,
    "schedule": {"name": "step", "drop_at": 2 / 3},
    "optimizer": {"lr": 1e-4, "weight_decay": 1e-4, "clip": 0.1},
}
_DEFORMABLE = {
    "variant": "deformable",
    "classifier": "focal",
    "num_queries": 300,
    "feedforward": 1024,
}
_DEFORMABLE_LEVELS = {**_DEFORMABLE, "levels": 4}
_DEFORMABLE_RUN = {
    "epochs": 50,
    "batch_size": 2,
    "optimizer": {"lr": 2e-4, "lr_backbone": 2e-5, "sampling_factor": 0.1, "weight_decay": 1e-4, "clip": 0.1},
    "schedule": {"name": "step", "drop_at": 0.8},
}
_DAB_DEFORMABLE = {**_DAB, "variant": "dab_deformable", "levels": 4}
_DN_DEFORMABLE = {**_DAB_DEFORMABLE, "variant": "dn_deformable"}
_DINO = {
    "variant": "dino",
    "classifier": "focal",
    "num_queries": 900,
    "levels": 4,
    "dropout": 0.0,
}
_DINO_RUN = {
    "losses": DAB_LOSSES,
    "batch_size": 2,
    "optimizer": {"lr": 1e-4, "lr_backbone": 1e-5, "weight_decay": 1e-4, "clip": 0.1},
    "denoising": CONTRASTIVE,
}
_RTDETR = {
    "variant": "rtdetr",
    "classifier": "focal",
    "num_queries": 300,
    "levels": 3,
    "encoder_layers": 1,
    "feedforward": 1024,
    "dropout": 0.0,
}
_RTDETR_SMALLER = {**_RTDETR, "fusion_expansion": 0.5, "train_batchnorm": True}
_RTDETR_RUN = {
    "losses": IOU_AWARE_LOSSES,
    "denoising": CONTRASTIVE,
    "images": {"size": (640, 640), "augment": "detr"},
    "batch_size": 16,
    "schedule": {"name": "constant", "warmup": 0.002},  # 2000 steps of about 880,000
    "ema": 0.9999,
}
_RTDETR_OPTIMIZER = {"lr": 1e-4, "lr_backbone": 1e-5, "weight_decay": 1e-4, "clip": 0.1}
_COCO_VIEWS = {"size": 800, "scales": "coco", "weight_global": 0.3, "weight_region": 3.0}
_COCO_RUN = {**_IMAGENET_RUN, "steps": 120_000, "batch_size": 64}
_PRE_NORM = {**_VANILLA, "pre_norm": True}
_COCO_IMAGES = {"size": 800, "scales": "coco"}
_SELECTIVE = {"proposals": "selective-search"}
_DETREG_FOCAL = {**_SELECTIVE, "classifier": "focal", "losses": {"cost_class": 2.0, "weight_class": 2.0}}
_DETREG_RUN = {
    "batch_size": 192,
    "optimizer": {"lr": 2e-4, "sampling_factor": 0.1, "weight_decay": 1e-4, "clip": 0.1},
}

PAPERS: dict[str, Preset] = {
    "siamese-imagenet-vanilla": Preset(
        "Siamese DETR on ImageNet, vanilla DETR: 300k steps of 256, λ_global 10, λ_region 3 (official config)",
        pretrain={"detector": _VANILLA, "siamese": {"weight_global": 10.0, "weight_region": 3.0}, **_IMAGENET_RUN},
    ),
    "siamese-imagenet-conditional": Preset(
        "Siamese DETR on ImageNet, Conditional DETR: 300k steps of 256, λ_global 10, λ_region 5 (official config)",
        pretrain={"detector": _CONDITIONAL, "siamese": {"weight_global": 10.0, "weight_region": 5.0}, **_IMAGENET_RUN},
    ),
    "siamese-imagenet-deformable-ss": Preset(
        "Siamese DETR on ImageNet, Deformable DETR of one level: 300k steps of 256, λ_global 10, λ_region 3 (official config)",
        pretrain={"detector": _DEFORMABLE, "siamese": {"weight_global": 10.0, "weight_region": 3.0}, **_IMAGENET_RUN},
    ),
    "siamese-imagenet-deformable": Preset(
        "Siamese DETR on ImageNet, Deformable DETR of four levels: 300k steps of 256, λ_global 10, λ_region 3 (official config)",
        pretrain={
            "detector": _DEFORMABLE_LEVELS,
            "siamese": {"weight_global": 10.0, "weight_region": 3.0},
            **_IMAGENET_RUN,
        },
    ),
    "deformable-ss": Preset(
        "Deformable DETR of one level, the upstream recipe: 300 queries, 50 epochs, drop at 40, rates 2e-4, 2e-5 and 2e-5",
        finetune={"detector": _DEFORMABLE, **_DEFORMABLE_RUN},
    ),
    "deformable": Preset(
        "Deformable DETR of four levels, the upstream recipe: 300 queries, 50 epochs, drop at 40",
        finetune={"detector": _DEFORMABLE_LEVELS, **_DEFORMABLE_RUN},
    ),
    "deformable-refine": Preset(
        "Deformable DETR of four levels with iterative box refinement, the upstream recipe",
        finetune={"detector": {**_DEFORMABLE_LEVELS, "refine": True}, **_DEFORMABLE_RUN},
    ),
    "deformable-twostage": Preset(
        "Deformable DETR of four levels in two stages with iterative box refinement, the upstream recipe",
        finetune={"detector": {**_DEFORMABLE_LEVELS, "refine": True, "two_stage": True}, **_DEFORMABLE_RUN},
    ),
    "siamese-coco-conditional": Preset(
        "Siamese DETR on COCO, Conditional DETR: 120k steps of 64, λ_global .3, λ_region 3 (official config)",
        pretrain={"detector": _CONDITIONAL, "siamese": _COCO_VIEWS, **_COCO_RUN},
    ),
    "siamese-coco-vanilla": Preset(
        "Ours: the COCO schedule and λ for vanilla DETR, for which the paper released no config",
        pretrain={"detector": _VANILLA, "siamese": _COCO_VIEWS, **_COCO_RUN},
    ),
    "siamese-coco-dab": Preset(
        "Ours: the COCO schedule and λ for DAB-DETR; the paper has DAB-Deformable-DETR",
        pretrain={"detector": _DAB, "siamese": _COCO_VIEWS, **_COCO_RUN},
    ),
    "siamese-coco-dn": Preset(
        "Ours: the COCO schedule and λ for DN-DETR, without denoising; the paper has DN-DAB-Deformable-DETR",
        pretrain={"detector": _DN, "siamese": _COCO_VIEWS, **_COCO_RUN},
    ),
    "updetr-imagenet-vanilla": Preset(
        "UP-DETR on ImageNet, pre-norm DETR: 60 epochs of 256, drop at 40, random patches (official script)",
        pretrain={"method": "updetr", "detector": _PRE_NORM, **_IMAGENET_RUN},
    ),
    "updetr-imagenet-conditional": Preset(
        "UP-DETR on ImageNet, Conditional DETR, as Siamese DETR's authors ran it beside theirs: 300k steps of 256, post-norm",
        pretrain={"method": "updetr", "detector": _CONDITIONAL, **_IMAGENET_RUN},
    ),
    "updetr-coco-conditional": Preset(
        "UP-DETR on COCO, Conditional DETR, as Siamese DETR's authors ran it beside theirs: 120k steps of 64",
        pretrain={"method": "updetr", "detector": _CONDITIONAL, "updetr": _COCO_IMAGES, **_COCO_RUN},
    ),
    "detreg-imagenet-deformable": Preset(
        "DETReg on ImageNet, Deformable DETR of four levels: 5 epochs of 192, 30 boxes of Selective Search (official script)",
        pretrain={
            "method": "detreg",
            "detector": _DEFORMABLE_LEVELS,
            "detreg": _DETREG_FOCAL,
            "epochs": 5,
            "schedule": {"name": "constant"},  # its drop at epoch 40 is never reached
            **_DETREG_RUN,
        },
    ),
    "detreg-coco-deformable": Preset(
        "DETReg on COCO, Deformable DETR of four levels: 50 epochs of 192, drop at 40, 30 boxes of Selective Search (official script)",
        pretrain={
            "method": "detreg",
            "detector": _DEFORMABLE_LEVELS,
            "detreg": _DETREG_FOCAL,
            "epochs": 50,
            "schedule": {"name": "step", "drop_at": 0.8},
            **_DETREG_RUN,
        },
    ),
    "detreg-imagenet-vanilla": Preset(
        "DETReg on ImageNet, pre-norm DETR: 60 epochs at one rate, 30 boxes of Selective Search (official script)",
        pretrain={
            "method": "detreg",
            "detector": _PRE_NORM,
            "detreg": _SELECTIVE,
            "epochs": 60,
            "batch_size": 192,
            "schedule": {"name": "constant"},  # its drop at epoch 200 is never reached
            "optimizer": {"lr": 1e-4, "weight_decay": 1e-4, "clip": 0.1},
        },
    ),
    "detreg-coco-conditional": Preset(
        "Ours: DETReg on COCO, Conditional DETR, by the schedule of the other methods there: 120k steps of 64",
        pretrain={
            "method": "detreg",
            "detector": _CONDITIONAL,
            "detreg": {**_COCO_IMAGES, **_SELECTIVE},
            **_COCO_RUN,
        },
    ),
    "updetr": Preset(
        "finetuning as UP-DETR does, pre-norm DETR: 300 epochs, drop at 200, backbone rate 5e-5 (official script)",
        finetune={
            "detector": _PRE_NORM,
            "losses": _SOFTMAX_LOSSES,
            "epochs": 300,
            "batch_size": 2,
            "optimizer": {"lr": 1e-4, "lr_backbone": 5e-5, "weight_decay": 1e-4, "clip": 0.1},
            "schedule": {"name": "step", "drop_at": 2 / 3},
        },
    ),
    "siamese-coco-dab-deformable": Preset(
        "Siamese DETR on COCO, DAB-Deformable-DETR of four levels, as in the supplement's table 2 (ours: regions in the content)",
        pretrain={"detector": _DAB_DEFORMABLE, "siamese": _COCO_VIEWS, **_COCO_RUN},
    ),
    "siamese-coco-dn-deformable": Preset(
        "Siamese DETR on COCO, DN-DAB-Deformable-DETR, as in the supplement's table 2 (ours: regions in the content, no denoising)",
        pretrain={"detector": _DN_DEFORMABLE, "siamese": _COCO_VIEWS, **_COCO_RUN},
    ),
    "dab": Preset(
        "DAB-DETR, the upstream recipe: 300 queries, 50 epochs, drop at 40, no dropout, backbone rate 1e-5",
        finetune={"detector": _DAB, **_DAB_RUN},
    ),
    "dn": Preset(
        "DN-DETR, the upstream recipe: DAB-DETR's with 5 denoising groups, label noise .2, box noise .4",
        finetune={"detector": _DN, **_DAB_RUN, "denoising": _DENOISING},
    ),
    "dab-deformable": Preset(
        "DAB-Deformable-DETR of four levels, the upstream recipe: 300 queries, 50 epochs, drop at 40, no dropout",
        finetune={"detector": _DAB_DEFORMABLE, **_DAB_RUN},
    ),
    "dn-deformable": Preset(
        "DN-DAB-Deformable-DETR, the upstream recipe: DAB-Deformable-DETR's with denoising as in `dn`",
        finetune={"detector": _DN_DEFORMABLE, **_DAB_RUN, "denoising": _DENOISING},
    ),
    "dino": Preset(
        "DINO of four levels, the upstream recipe: 900 queries, 12 epochs, drop at 11, contrastive denoising",
        finetune={"detector": _DINO, **_DINO_RUN, "epochs": 12, "schedule": {"name": "step", "drop_at": 11 / 12}},
    ),
    "dino-24": Preset(
        "DINO of four levels, the upstream recipe of 24 epochs: drop at 20",
        finetune={"detector": _DINO, **_DINO_RUN, "epochs": 24, "schedule": {"name": "step", "drop_at": 20 / 24}},
    ),
    "siamese-coco-dino": Preset(
        "Ours: the COCO schedule and λ for DINO (regions in the content of the chosen queries, no denoising)",
        pretrain={"detector": _DINO, "siamese": _COCO_VIEWS, **_COCO_RUN},
    ),
    "rtdetr-r18": Preset(
        "RT-DETRv2 with ResNet-18-vd, the upstream recipe: 640 × 640, 3 layers, 120 epochs, all batch norms train (ours: DETR's augmentation, decay also on norms)",
        finetune={
            "detector": {**_RTDETR_SMALLER, "backbone": "resnet18vd", "decoder_layers": 3},
            **_RTDETR_RUN,
            "epochs": 120,
            "optimizer": {**_RTDETR_OPTIMIZER, "lr_backbone": 1e-4},
        },
    ),
    "rtdetr-r34": Preset(
        "RT-DETRv2 with ResNet-34-vd, the upstream recipe: 640 × 640, 4 layers, 120 epochs, backbone rate 5e-5 (ours: as in `rtdetr-r18`)",
        finetune={
            "detector": {**_RTDETR_SMALLER, "backbone": "resnet34vd", "decoder_layers": 4},
            **_RTDETR_RUN,
            "epochs": 120,
            "optimizer": {**_RTDETR_OPTIMIZER, "lr_backbone": 5e-5},
        },
    ),
    "rtdetr-r50": Preset(
        "RT-DETRv2 with ResNet-50-vd, the upstream recipe: 640 × 640, 6 layers, 72 epochs, frozen batch norms (ours: as in `rtdetr-r18`)",
        finetune={
            "detector": {**_RTDETR, "backbone": "resnet50vd"},
            **_RTDETR_RUN,
            "epochs": 72,
            "optimizer": _RTDETR_OPTIMIZER,
        },
    ),
    "rtdetr-r101": Preset(
        "RT-DETRv2 with ResNet-101-vd, the upstream recipe: an encoder of width 384, 72 epochs, backbone rate 1e-6 (ours: as in `rtdetr-r18`)",
        finetune={
            "detector": {**_RTDETR, "backbone": "resnet101vd", "encoder_dim": 384, "encoder_feedforward": 2048},
            **_RTDETR_RUN,
            "epochs": 72,
            "optimizer": {**_RTDETR_OPTIMIZER, "lr_backbone": 1e-6},
        },
    ),
    "siamese-coco-rtdetr": Preset(
        "Ours: the COCO schedule and λ for RT-DETRv2 with ResNet-50-vd (regions in the content of the chosen queries, no denoising)",
        pretrain={
            "detector": {**_RTDETR, "backbone": "resnet50vd"},
            "siamese": {**_COCO_VIEWS, "size": (640, 640)},
            **_COCO_RUN,
        },
    ),
    "conditional": Preset(
        "Conditional DETR as Siamese DETR released it: 50 epochs, drop at 40, backbone rate 5e-5",
        finetune={
            "detector": _CONDITIONAL,
            "epochs": 50,
            "batch_size": 2,
            "optimizer": {"lr": 1e-4, "lr_backbone": 5e-5, "weight_decay": 1e-4, "clip": 0.1},
            "schedule": {"name": "step", "drop_at": 0.8},
        },
    ),
    "vanilla": Preset(
        "vanilla DETR, the upstream recipe: 150 epochs, drop at 100, softmax with 'no object', backbone rate 1e-5",
        finetune={
            "detector": _VANILLA,
            "losses": _SOFTMAX_LOSSES,
            "epochs": 150,
            "batch_size": 2,
            "optimizer": {"lr": 1e-4, "lr_backbone": 1e-5, "weight_decay": 1e-4, "clip": 0.1},
            "schedule": {"name": "step", "drop_at": 2 / 3},
        },
    ),
}
