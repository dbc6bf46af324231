"""A small random detector behind the public API."""

from __future__ import annotations

import torch

from helpers.detectors import own_settings
from siamdetr.api import SiamDETR
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.models.detector import Detector
from siamdetr.settings.detector import DetectorSettings

TINY = {"backbone": "resnet18", "dim": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 2, "feedforward": 32}


NAMES = ("cat", "dog", "cell")


def tiny_model(
    variant: str = "conditional", classifier: str = "focal", *, spec: PreprocessingSpec | None = None
) -> SiamDETR:
    """A small detector with random weights whose boxes depend on the image."""
    torch.manual_seed(3)
    settings = DetectorSettings.model_validate(
        {**TINY, **own_settings(variant), "classifier": classifier, "num_classes": 3, "num_queries": 20}
    )
    detector = Detector(settings)
    for parameter in [*detector.box_head.parameters(), *detector.class_head.parameters()]:
        torch.nn.init.normal_(parameter, std=0.5)
    return SiamDETR.from_parts(
        detector,
        class_names=NAMES,
        preprocessing=spec or PreprocessingSpec.from_size(96),
        category_ids=(1, 5, 9),
        lineage=("a test",),
    )
