"""Numeric precision of training: subnormals on a CPU, float32 on a GPU, and `precision: auto`.

`auto` is fp32 or bf16, whichever trains faster on this device and stays finite; measured once, then part of the run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from siamdetr.errors import NonFiniteLossError
from siamdetr.settings.training import TF32, Precision, RunSettings, RunSettingsType
from siamdetr.training.run_folder import RunFolder
from siamdetr.training.step_module import StepModule

_log = logging.getLogger(__name__)
_STEPS = 3  # of which the first warms up


@contextmanager
def training_arithmetic(tf32: TF32) -> Iterator[None]:
    """Set the arithmetic of a training inside the block, which starts before any computation.

    Subnormal numbers (below 1.2e-38) count as zero. One or two in a hundred factors of the backward pass are subnormal,
    and some processors multiply them more than ten times slower. OpenMP's threads inherit the setting from the thread
    that starts them, so it has to be made before the first parallel operation.

    Args:
        tf32: which float32 products may round their factors to 10 bits on a GPU that knows TF32 (Ampere and later).
    """
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = _flushes_subnormals(), convolutions.allow_tf32, products.allow_tf32
    torch.set_flush_denormal(True)
    convolutions.allow_tf32, products.allow_tf32 = tf32 != "none", tf32 == "all"
    try:
        yield
    finally:
        torch.set_flush_denormal(before[0])
        convolutions.allow_tf32, products.allow_tf32 = before[1:]


def _flushes_subnormals() -> bool:
    """PyTorch sets this and does not tell it."""
    return float(torch.full((), 1e-40) * 1) == 0.0


def recorded_precision(settings: RunSettingsType, run: RunFolder) -> RunSettingsType:
    """The settings with the precision that a resumed run began with, if they leave it open."""
    if settings.precision != "auto" or run.state is None:
        return settings
    return settings.model_copy(update={"precision": run.state.settings["precision"]})


def choose_precision(
    module: StepModule, batch: Any, settings: RunSettings, device: torch.device, *, processes: int
) -> Precision:
    """Choose the faster of fp32 and bf16, and log it.

    Several processes must agree without asking one another, so they take bf16 where the GPU has it.

    Args:
        module: is moved to the device; its weights and statistics are as before afterwards.
        batch: as it comes from the loader.
        settings: with precision "auto".
        device: of the training.
        processes: that train together.
    """
    if settings.precision != "auto":
        return settings.precision
    if device.type == "mps":  # its bf16 has not been tried
        return "fp32"
    if processes > 1:
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    seconds: dict[Precision, float] = {"fp32": _step_seconds(module, batch, device, None)}
    try:
        seconds["bf16"] = _step_seconds(module, batch, device, torch.bfloat16)
    except NonFiniteLossError as error:
        _log.info("bf16 is out: %s", error)
    best = min(seconds, key=lambda name: seconds[name])
    times = ", ".join(f"{name} {value:.3f} s" for name, value in seconds.items())
    _log.info("Precision %s: the faster on this device (a step: %s).", best, times)
    return best


def _step_seconds(module: StepModule, batch: Any, device: torch.device, dtype: torch.dtype | None) -> float:
    """Seconds of the fastest forward and backward pass.

    Raises:
        NonFiniteLossError: the loss or a gradient is not finite.
    """
    module.to(device).train()
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    placed = module.transfer_batch_to_device(batch, device, 0)
    seconds = []
    for _ in range(_STEPS):
        started = time.perf_counter()
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            total: Any = module.training_step(placed, 0)
        total.backward()
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        finite = all(bool(torch.isfinite(value).all()) for value in (total, *gradients))  # waits for the device
        seconds.append(time.perf_counter() - started)
        module.zero_grad(set_to_none=True)
        module.records.clear()
        if not finite:
            break
    module.load_state_dict(kept)
    if not finite:
        raise NonFiniteLossError("a loss or gradient of a trial step is not finite")
    return min(seconds[1:])
