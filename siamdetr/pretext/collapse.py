"""Signs of a collapse of pretraining in the monitors, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """A monitor and the value at which it is a sign of collapse."""

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
    """Signs of a collapse in the monitors.

    Args:
        figures: monitors by name, each a mean over some steps; other figures are ignored.
    Returns:
        A sentence with the value by the monitor's name; empty without signs.
    """
    return {
        limit.monitor: (
            f"{limit.meaning} ({limit.monitor} is {figures[limit.monitor]:.2g}, "
            f"expected {'at least' if limit.is_least else 'at most'} {limit.value:g})"
        )
        for limit in LIMITS
        if limit.monitor in figures and (figures[limit.monitor] < limit.value) is limit.is_least
    }
