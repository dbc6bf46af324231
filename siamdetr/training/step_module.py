"""The Lightning module shared by both stages.

It has the step counter, the losses for the log, and the optimiser.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from siamdetr.errors import NonFiniteLossError
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.models.detector import Detector
from siamdetr.settings.training import RunSettings
from siamdetr.training.optim import build_optimizer, build_schedule, rate_factor


def non_finite(step: int, what: str, images: tuple[int, ...]) -> str:
    """The text of a NonFiniteLossError."""
    ids = ", ".join(str(image) for image in images)
    return (
        f"step {step}: {what}; images {ids}. The run stops; the last checkpoint is from before it. "
        "Lower optimizer.lr, or use --precision bf16 or fp32 where it was fp16"
    )


@dataclass(frozen=True)
class StepRecord:
    """The figures of one batch, copied to the host without making the device wait."""

    step: int
    images: tuple[int, ...]
    names: tuple[str, ...]
    values: Tensor  # [len(names)], on the host; whole once `event` has passed
    event: Any | None  # torch.cuda.Event, None on the CPU

    def arrived(self) -> bool:
        """Whether `values` can be read without waiting."""
        return self.event is None or bool(self.event.query())

    def wait(self) -> None:
        """Make `values` readable."""
        if self.event is not None:
            self.event.synchronize()


class StepModule(LightningModule):
    """Counts optimiser steps itself.

    `step` is saved and restored, Lightning's own counters start at 0 in every session.

    Randomness inside the step (dropout, region jitter) is seeded from (seed, step, process), so that a resumed run
    repeats it without any generator's state. Ours.
    """

    detector: Detector

    def __init__(self, settings: RunSettings, preprocessing: PreprocessingSpec, total_steps: int) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.run_settings = settings
        self.total_steps = total_steps
        self.step = 0
        self.rate = 0.0
        self.records: deque[StepRecord] = deque()
        # Of a batch counted from the run's start.
        self.image_ids_of: Callable[[int], tuple[int, ...]] = lambda batch: ()
        self.changes: tuple[str, ...] = ()  # made in continuations, for the lineage
        self.data: dict[str, Any] = {}  # fingerprints of its parts
        self.underway = False  # restored, and every callback has begun

    def on_train_start(self) -> None:
        """Check the restored state of a resumed run, and take the rates from the settings.

        Raises:
            ValueError: the optimiser's state has other shapes than the weights.
        """
        optimizer = self.trainer.optimizers[0]
        for weight, state in optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.dim() and value.shape != weight.shape:
                    raise ValueError(f"the optimiser's {name} is {list(value.shape)} for weights {list(weight.shape)}")
        if self.changes:
            self._renew_rates(optimizer)
        self.underway = True

    def _renew_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace the checkpoint's learning rates by those of the settings, at this step of the schedule."""
        scheduler = self.trainer.lr_scheduler_configs[0].scheduler
        factor = rate_factor(self.run_settings.schedule, self.total_steps)(self.step)
        now = build_optimizer(self, self.run_settings.optimizer, fused=False)
        for group, new in zip(optimizer.param_groups, now.param_groups, strict=True):
            group.update(initial_lr=new["lr"], lr=new["lr"] * factor, weight_decay=new["weight_decay"])
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]

    def seed_step(self, batch_idx: int) -> None:
        """Seed torch's generators for this batch."""
        number = self.batch_number(batch_idx)
        torch.manual_seed((self.run_settings.seed * 1_000_003 + number * 4_099 + self.global_rank) % 2**63)

    def batch_number(self, batch_idx: int) -> int:
        """The number of a batch from the start of the run; Lightning's counter starts at 0 in every session."""
        accumulate = self.run_settings.grad_accum
        return self.step * accumulate + batch_idx % accumulate

    def remember(self, images: tuple[int, ...], figures: dict[str, Tensor]) -> None:
        """Copy the batch's figures to the host without waiting; the callbacks read `records`."""
        values = torch.stack([value.detach().float().reshape(()) for value in figures.values()])
        event = None
        if values.is_cuda:
            values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self.records.append(StepRecord(self.step + 1, images, tuple(figures), values, event))

    @contextmanager
    def naming_the_step(self, images: tuple[int, ...]) -> Iterator[None]:
        """Stop the run at predictions that are not finite; the message names the step and the images."""
        try:
            yield
        except FloatingPointError as error:
            raise NonFiniteLossError(non_finite(self.step + 1, str(error), images)) from error

    def optimizer_step(self, *args: Any, **keywords: Any) -> None:
        """One counted optimizer step; `rate` is its learning rate."""
        self.rate = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        super().optimizer_step(*args, **keywords)
        self.step += 1

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm of all gradients.

        Lightning refuses this for a fused optimiser under bf16, although nothing is scaled there.
        """
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> Any:
        """AdamW and its schedule."""
        settings = self.run_settings
        # A fused optimiser unscales float16's gradients itself, after they should have been clipped.
        optimizer = build_optimizer(self, settings.optimizer, fused=settings.precision != "fp16")
        schedule = build_schedule(optimizer, settings.schedule, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave Lightning's loop counters out (ours): our `step` says where the run is."""
        checkpoint.pop("loops", None)
        checkpoint["step"] = self.step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the step of the checkpoint."""
        checkpoint.pop("loops", None)
        self.step = checkpoint["step"]


def completed_step(trainer: Any, batch_idx: int) -> bool:
    """Whether this batch ended an optimizer step, instead of only adding gradients."""
    return bool((batch_idx + 1) % trainer.accumulate_grad_batches == 0)
