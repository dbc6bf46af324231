"""Communication between the processes of a run; alone, each function returns its own value."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from siamdetr.system.launcher import launch

Value = TypeVar("Value")
_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.2
_SAID_AFTER = 60.0  # seconds of waiting
_PATIENCE = datetime.timedelta(days=365)


def started() -> bool:
    """Whether this process trains together with others."""
    return bool(distributed.is_available() and distributed.is_initialized())


def world_size() -> int:
    """The number of processes that train together."""
    return int(distributed.get_world_size()) if started() else 1


def total(values: Tensor) -> Tensor:
    """Sum of a tensor over all processes, in place. All must call it together."""
    if started():
        distributed.all_reduce(values)
    return values


def overwrite_with_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the first process. All must call it together."""
    if started():
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def largest(value: int, device: torch.device) -> int:
    """The largest of a number in all processes. All must call it together."""
    if not started():
        return value
    shared = torch.tensor([value], device=device)
    distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
    return int(shared.item())


class PatientGroup:
    """A group of all processes of a run, in which the others wait for the first without a time limit.

    PyTorch gives up on a process after 10 or 30 minutes, and computing proposals or an evaluation may take longer. Here
    there is no limit; a process that dies is noticed at once, since its connections close. All processes must make the
    group together, before one of them begins to work alone.
    """

    def __init__(self) -> None:
        self._group: Any = distributed.new_group(backend="gloo", timeout=_PATIENCE) if started() else None

    def wait(self, poll: Callable[[], object] = lambda: None) -> None:
        """Wait until all processes have come here.

        Args:
            poll: called again and again meanwhile; may raise to give up.
        """
        if self._group is None:
            return
        work, begun, said = distributed.barrier(group=self._group, async_op=True), time.monotonic(), False
        while not work.is_completed():
            poll()
            if not said and time.monotonic() - begun > _SAID_AFTER:
                _log.info("Waiting for the first process, which is still at work.")
                said = True
            time.sleep(_POLL_SECONDS)
        work.wait()

    def from_first(self, value: Any) -> Any:
        """Return the first process's value in all processes. Numbers and texts only."""
        if self._group is None:
            return value
        shared = [value]
        distributed.broadcast_object_list(shared, src=0, group=self._group)
        return shared[0]

    def gathered(self, value: Value) -> list[Value]:
        """Return the values of all processes, in the order of their ranks, in all of them. All must call it."""
        if self._group is None:
            return [value]
        found: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(found, value, group=self._group)
        return found

    def share(self, count: int) -> range:
        """The items of 0..count-1 that this process works on: every n-th of n processes."""
        if self._group is None:
            return range(count)
        return range(distributed.get_rank(), count, distributed.get_world_size())


@contextmanager
def first_process_first(poll: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Let the first process in alone, and the others when it has left, so that they find its work done.

    Processes of torchrun meet here for it. Others (SLURM's, Lightning's) go in together: what they do there must be
    safe for that.
    """
    this = launch()
    together = this.by == "torchrun" and (this.world_size or 1) > 1
    if together and not started():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    group = PatientGroup() if together else None
    if group is not None and not this.is_first:
        group.wait(poll)
    yield
    if group is not None and this.is_first:
        group.wait(poll)
