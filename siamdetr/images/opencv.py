"""OpenCV, imported on first use: finetuning and prediction do without it. Import this module as `cv2`."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """What OpenCV has under that name."""
    import cv2

    return getattr(cv2, name)
