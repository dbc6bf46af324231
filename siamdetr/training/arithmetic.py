"""How numbers are computed in this process: subnormals on a CPU, and what float32 means on a GPU."""

from __future__ import annotations

import torch

from siamdetr.settings.training import TF32


def prepare_arithmetic(tf32: TF32) -> None:
    """Set the arithmetic of a training process. Call it before anything is computed.

    Subnormal numbers (below 1.2e-38) count as zero. One or two in a hundred factors of the backward pass are subnormal, and some
    processors multiply them more than ten times slower. OpenMP's threads inherit the setting from the thread that starts them,
    so it has to be made before the first parallel operation.

    Args:
        tf32: which float32 products may round their factors to 10 bits on a GPU that knows TF32 (Ampere and later).
    """
    torch.set_flush_denormal(True)
    torch.backends.cudnn.allow_tf32 = tf32 != "none"
    torch.backends.cuda.matmul.allow_tf32 = tf32 == "all"
