"""Pretext tasks: what a detector learns from images without labels. One method, one file."""

from __future__ import annotations

from siamdetr.pretext.siamese import SiameseDETR

PRETEXTS = {"siamese": SiameseDETR}

__all__ = ["PRETEXTS", "SiameseDETR"]
