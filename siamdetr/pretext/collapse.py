"""When pretraining collapses: the figures that say so, and what they say to a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """A monitor and the value at which it speaks of a collapse."""

    monitor: str
    value: float
    is_least: bool  # True: below it; False: above it
    meaning: str


LIMITS = (
    Limit("monitor_query_std", 0.005, True, "the decoder answers every image alike"),
    Limit("monitor_image_cosine", 0.999, False, "the encoder gives every image the same mean"),
)

COLLAPSE_REMEDY = (
    "Look at the pictures in report.html; lower the learning rate or the weight of the global loss, or check the images"
)


def collapsed(figures: Mapping[str, float]) -> dict[str, str]:
    """The sign of a collapse in the monitors, if there is one.

    Args:
        figures: monitors of a step (mean over some steps) by name; others are not looked at.
    Returns:
        By the monitor's name a sentence with its value; empty where all is well.
    """
    return {
        limit.monitor: (
            f"{limit.meaning} ({limit.monitor} is {figures[limit.monitor]:.2g}, "
            f"expected {'at least' if limit.is_least else 'at most'} {limit.value:g})"
        )
        for limit in LIMITS
        if limit.monitor in figures and (figures[limit.monitor] < limit.value) is limit.is_least
    }
