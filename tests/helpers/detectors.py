"""What each detector needs to be built at all, for tests over the registry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from siamdetr.models.detector import Detector
from siamdetr.settings.registry import DETECTORS

SIZES = [(128, 64), (70, 96), (96, 96)]  # height and width of the images of `padded_batch`


def own_settings(variant: str) -> dict[str, Any]:
    """The detector's name and classifier; three feature levels where the encoder chooses queries.

    One level of a tiny image has too few cells for them.
    """
    entry = DETECTORS[variant]
    levels = {"levels": 3} if entry.proposes else {}
    return {"variant": variant, "classifier": entry.classifier, **levels}


def padded_batch() -> tuple[Tensor, Tensor]:
    """Three images of different sizes, zero-padded: [3, 3, 128, 96], and their padding, True where padded."""
    images, padding = torch.zeros(3, 3, 128, 96), torch.ones(3, 128, 96).bool()
    generator = torch.Generator().manual_seed(1)
    for index, (height, width) in enumerate(SIZES):
        images[index, :, :height, :width] = torch.randn(3, height, width, generator=generator)
        padding[index, :height, :width] = False
    return images, padding


class LastLayer(nn.Module):
    """A detector that answers with logits and boxes of its last layer, as an export has it."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs = self.detector(images, padding)
        return outputs.logits[-1], outputs.boxes[-1]
