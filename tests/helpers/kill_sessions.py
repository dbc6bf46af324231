"""Sessions of a run, killed at every write and resumed, in a process of their own.

Every session is a fork of that process, which has imported everything. It cannot be the tests' own: once the autograd
of a process has threads, its forks cannot go backward.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from unittest.mock import patch

import torch
from markupsafe import Markup
from matplotlib.figure import Figure

from helpers.kills import in_own_processes, remains
from helpers.training_data import finetune_settings, pretrain_settings
from siamdetr.training.finetune import finetune
from siamdetr.training.pretrain import pretrain


class Session(Protocol):
    """A session of a run."""

    def __call__(self, folder: Path, *, resume: str | None) -> object:
        """Into a folder."""


def finetuning(data: Path, folder: Path, *, resume: str | None) -> None:
    finetune(finetune_settings(data, folder, steps=2, checkpoint_every=1, val_every=1.0, ema=0.5), resume=resume)


def pretraining(data: Path, folder: Path, *, resume: str | None) -> None:
    pretrain(pretrain_settings(data, folder, steps=1, method="updetr"), resume=resume)


def leave_and_resume(session: Callable[..., object], data: Path, place: Path) -> None:
    """Leave `place`/whole, an uninterrupted run, and `place`/killed, a resumed run for every kill."""
    run = functools.partial(session, data)
    process = multiprocessing.get_context("spawn").Process(target=_leave_and_resume, args=(run, place))
    process.start()
    process.join()
    assert process.exitcode == 0


def _leave_and_resume(run: Session, place: Path) -> None:
    torch.set_num_threads(1)
    # Figures without content: drawing would take longer than all the rest.
    with (
        patch("siamdetr.training.run_report.curves_svg", lambda *_, **__: Markup("")),
        patch("siamdetr.training.pictures.attention_figure", lambda *_: Figure((1, 1))),
    ):
        whole = place / "whole"
        killed = remains(lambda: run(whole, resume=None), whole, place / "killed")
        in_own_processes([functools.partial(run, folder, resume="auto") for folder in killed], at_once=2)
