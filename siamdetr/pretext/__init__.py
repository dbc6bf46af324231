"""Pretext tasks: what a detector learns from images without labels. One method, one file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from siamdetr.models.detector import Detector
from siamdetr.pretext.common import Pretext
from siamdetr.pretext.detreg import DETReg
from siamdetr.pretext.siamese import SiameseDETR
from siamdetr.pretext.updetr import UPDETR
from siamdetr.settings.pretext import Method

__all__ = ["PRETEXTS", "UPDETR", "DETReg", "Pretext", "SiameseDETR"]

# (detector, the method's own settings) -> the module that holds the detector.
PRETEXTS: dict[Method, Callable[[Detector, Any], Pretext]] = {
    "siamese": SiameseDETR,
    "updetr": UPDETR,
    "detreg": DETReg,
}
