"""Read the figures of steps once they are on the host: stop at a bad loss, average the others."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from siamdetr.errors import NonFiniteLossError
from siamdetr.pretext.collapse import COLLAPSE_REMEDY, collapsed
from siamdetr.system import distributed
from siamdetr.training.progress import ProgressSink
from siamdetr.training.step_module import StepModule, StepRecord, completed_step, non_finite

_log = logging.getLogger(__name__)


class StepLog(Callback):
    """Check the losses of every step, log their mean every `log_every` steps, and move the bar.

    Losses are checked as soon as they are on the host.

    On the CPU a bad loss stops the run at its own step; on a GPU the figures arrive a step or two later, which costs no
    waiting. `check` waits for all of them, and is called before anything is saved. A sign of collapse is logged once
    per session.
    """

    def __init__(self, log_every: int, progress: ProgressSink) -> None:
        self.log_every = log_every
        self.progress = progress
        self._names: tuple[str, ...] = ()
        self._since_log: list[torch.Tensor] = []  # [len(names)] each
        self._images = 0
        self._last_time = 0.0
        self._told: set[str] = set()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock."""
        self._last_time = time.perf_counter()
        if trainer.is_global_zero:
            self.progress.begin("train", pl_module.total_steps, pl_module.step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Read the figures that have arrived; at a logging step, all of them."""
        while pl_module.records and pl_module.records[0].arrived():
            self._take(pl_module.records.popleft())
        if not completed_step(trainer, batch_idx):
            return
        if pl_module.step % self.log_every == 0 or pl_module.step == pl_module.total_steps:
            self.check(pl_module)
            self._write(trainer, pl_module)
        elif trainer.is_global_zero:
            self.progress.update("train", pl_module.step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Complete the progress bar."""
        if trainer.is_global_zero:
            self.progress.end("train")

    def state_dict(self) -> dict[str, Any]:
        """The window since the last row, so that a resumed run writes the same next row."""
        return {"names": list(self._names), "since_log": self._since_log, "images": self._images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self._names, self._since_log = tuple(state_dict["names"]), list(state_dict["since_log"])
        self._images = state_dict["images"]

    def check(self, module: StepModule) -> None:
        """Wait for all figures so far and check them.

        Raises:
            NonFiniteLossError: in any process.
        """
        problem: NonFiniteLossError | None = None
        try:
            while module.records:
                record = module.records.popleft()
                record.wait()
                self._take(record)
        except NonFiniteLossError as error:
            problem = error
        if distributed.largest(int(problem is not None), module.device) and problem is None:
            problem = NonFiniteLossError("a loss is not finite in another process; its text names it")
        if problem is not None:
            raise problem

    def _take(self, record: StepRecord) -> None:
        if not bool(record.values.isfinite().all()):
            bad = [
                f"{name} = {value}"
                for name, value in zip(record.names, record.values.tolist(), strict=True)
                if not torch.tensor(value).isfinite()
            ]
            raise NonFiniteLossError(non_finite(record.step, ", ".join(bad), record.images))
        self._names = record.names
        self._since_log.append(record.values)
        self._images += len(record.images)

    def _write(self, trainer: Any, module: StepModule) -> None:
        mean = torch.stack(self._since_log).mean(0)
        count = torch.tensor([float(self._images)])
        self._since_log, self._images = [], 0
        if distributed.started():
            packed = distributed.total(torch.cat([mean / trainer.world_size, count]).to(module.device))
            mean, count = packed[:-1].cpu(), packed[-1:].cpu()
        now = time.perf_counter()
        figures = {name: float(value) for name, value in zip(self._names, mean, strict=True) if not _auxiliary(name)}
        figures["lr"] = module.rate
        figures["images_per_second"] = float(count) / max(now - self._last_time, 1e-9)
        if module.device.type == "cuda":
            figures["memory_gib"] = torch.cuda.max_memory_allocated(module.device) / 2**30
        self._last_time = now
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=module.step)
        if trainer.is_global_zero:
            self.progress.update("train", module.step, {"loss": figures["loss"]})
            self._warn_of_collapse(figures, module.step)

    def _warn_of_collapse(self, figures: dict[str, float], step: int) -> None:
        for monitor, text in collapsed(figures).items():
            if monitor not in self._told:
                self._told.add(monitor)
                _log.warning("step %d: collapse: %s. %s", step, text, COLLAPSE_REMEDY)


def _auxiliary(name: str) -> bool:
    """Losses of the earlier decoder layers, such as loss_bbox_3: in the total, not in the log."""
    return name.rpartition("_")[2].isdigit()
