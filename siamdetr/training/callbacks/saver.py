"""When a run is saved: every N steps, after an evaluation, at the end, and on a signal."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from siamdetr.errors import NonFiniteLossError
from siamdetr.files import LAST_CHECKPOINT
from siamdetr.settings.base import to_json
from siamdetr.system import distributed
from siamdetr.system.signals import Interrupted, SignalWatch
from siamdetr.training.callbacks.step_log import StepLog
from siamdetr.training.checkpoints.checkpoint_file import FORMAT_VERSION, NORMALIZATION, STATE
from siamdetr.training.step_module import StepModule, completed_step

_log = logging.getLogger(__name__)
_POLL_EVERY = 10  # steps between two questions among several processes: each costs a small all-reduce


def agreed(watch: SignalWatch, device: torch.device) -> int | None:
    """The signal that any of the training's processes received; None: none did.

    All processes must call it together.
    """
    return distributed.largest(watch.received or 0, device) or None


class Saver(Callback):
    """Writes last.ckpt (to resume) and last.safetensors (to use); polls for signals.

    It must be the last callback.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int,
        watch: SignalWatch,
        step_log: StepLog,
        save_model: Callable[[StepModule], None],
    ) -> None:
        self.folder = folder
        self.every = every
        self.watch = watch
        self.step_log = step_log
        self.save_model = save_model
        self._saved_at = -1

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Take the signals back from Lightning.

        Write a first checkpoint, so that a full disk is noticed now and not in an hour.
        """
        self.watch.install()
        self._saved_at = pl_module.step
        if pl_module.step == 0:
            self.save(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save when it is due; stop after a signal."""
        if not completed_step(trainer, batch_idx):
            return
        step = pl_module.step
        asked = None
        if trainer.world_size == 1 or step % _POLL_EVERY == 0:
            asked = agreed(self.watch, pl_module.device)
        if asked is not None or step % self.every == 0 or step == pl_module.total_steps:
            self.save(trainer, pl_module)
        if asked is not None:
            raise Interrupted(asked, f"{signal.Signals(asked).name}: saved at step {step}; go on with --resume auto")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The last step is always saved, also after an early stop."""
        if self._saved_at != pl_module.step:
            self.save(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add our section, which identifies the run, so that resuming can refuse another one."""
        checkpoint[STATE] = {
            "format_version": FORMAT_VERSION,
            "stage": pl_module.run_settings.stage,
            "settings": to_json(pl_module.run_settings),
            "step": pl_module.step,
            "world_size": trainer.world_size,
            "torch": str(torch.__version__),
            "data": pl_module.data,
            "changes": list(pl_module.changes),
            "stopped": bool(trainer.should_stop),
            NORMALIZATION: [list(values) for values in pl_module.preprocessing.normalization],
        }

    def save(self, trainer: Any, module: StepModule) -> None:
        """Write last.ckpt and last.safetensors, unless figures or weights are not finite.

        Raises:
            NonFiniteLossError: they are not; the files stay as they were.
        """
        self.step_log.check(module)
        parameters = [parameter.detach() for parameter in module.parameters()]
        norms = torch.stack(torch._foreach_norm(parameters))
        if not math.isfinite(float(norms.sum())):
            raise NonFiniteLossError(
                f"step {module.step}: the weights are not finite. The run stops; the last checkpoint is from before it"
            )
        trainer.save_checkpoint(self.folder / LAST_CHECKPOINT)
        if trainer.is_global_zero:
            self.save_model(module)
        self._saved_at = module.step
        _log.debug("saved at step %d", module.step)
