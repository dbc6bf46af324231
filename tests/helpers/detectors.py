"""What each detector needs to be built at all, for tests over the registry."""

from __future__ import annotations

from typing import Any

from siamdetr.settings.registry import DETECTORS


def own_settings(variant: str) -> dict[str, Any]:
    """Its name and classifier; three feature levels where the encoder chooses queries, since a tiny image has few cells."""
    entry = DETECTORS[variant]
    levels = {"levels": 3} if entry.proposes else {}
    return {"variant": variant, "classifier": entry.classifier, **levels}
