"""Pretrain DETR detectors without labels, finetune them on few, export them behind a numeric gate.

The public API is two names, imported on first use, so that `import siamdetr` loads nothing heavy:
`SiamDETR` (a detector with its classes and preprocessing) and `load` (open any of our files).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from siamdetr.api import SiamDETR, load

__version__ = "0.1.0"
__all__ = ["SiamDETR", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("SiamDETR", "load"):
        from siamdetr import api as detector

        return getattr(detector, name)
    raise AttributeError(f"module 'siamdetr' has no attribute {name!r}")
