"""Small DAB-DETR and DN-DETR detectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from siamdetr.models.detector import Detector
from siamdetr.models.heads import each_head
from siamdetr.settings.detector import DetectorSettings

VARIANTS = ["dab", "dn"]


def detector(variant: str, **changes: Any) -> Detector:
    """Tiny, with a box head that moves boxes."""
    torch.manual_seed(0)
    tiny = {"backbone": "test_resnet.r160_in1k", "num_queries": 6, "dim": 32, "heads": 2, "num_classes": 3}
    layers = {"encoder_layers": 2, "decoder_layers": 3, "feedforward": 32, "dropout": 0.0}
    built = Detector(DetectorSettings.model_validate({"variant": variant, **tiny, **layers, **changes}))
    for head in each_head(built.box_head):
        torch.nn.init.normal_(head.layers[-1].weight, std=0.5)
    return built


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
