"""How a process that reads images for a training begins."""

from __future__ import annotations

from siamdetr.system.heap import return_large_blocks
from siamdetr.system.signals import leave_signals_to_parent


def begin_loading(worker: int = 0) -> None:
    """Leave signals to the parent, and return the memory of large images.

    Args:
        worker: not used; a DataLoader's `worker_init_fn` gets it.
    """
    leave_signals_to_parent()
    return_large_blocks()
