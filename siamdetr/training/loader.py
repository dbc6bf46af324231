"""The data loader, which can start at any position of the sample order.

Training is one endless stream of batches: batch b of process r is a function of (seed, b, r), so that a resumed run,
another number of workers or another number of processes (with the same total batch) sees the same samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from siamdetr.data.sampler import Sample, SampleOrder
from siamdetr.structures.targets import in_one_window
from siamdetr.system.loading import begin_loading
from siamdetr.system.shared_memory import allow_open_files, check_shared_memory, explained


class BatchStream:
    """An iterable of batches [start, stop) in stream order; no DataLoader, so Lightning leaves it alone.

    Args:
        dataset: takes (epoch, position) and must be a function of them and its seed alone.
        collate: samples to a batch.
        order: of the samples.
        start: number of the first batch.
        stop: number of the batch after the last.
        workers: loading processes; 0 loads in this one.
        timeout: seconds after which a hung worker is an error; 0: never.
        pin: page-locked memory, for a GPU.
        window: batches whose gradients make one step; they come together, and their targets know one another's counts.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        collate: Callable[[list[Any]], Any],
        order: SampleOrder,
        *,
        start: int,
        stop: int,
        workers: int,
        timeout: int,
        pin: bool,
        window: int = 1,
    ) -> None:
        self._length, self._window, self._timeout = stop - start, window, timeout
        self._dataset, self._first, self._collate = dataset, (order, start), collate
        self._loader = DataLoader(
            dataset,
            batch_sampler=_Piece(order, start, stop),
            collate_fn=collate,
            num_workers=workers,
            worker_init_fn=begin_loading,
            timeout=timeout if workers else 0,
            pin_memory=pin,
            generator=torch.Generator(),  # else it would draw from the global one, which belongs to the steps
        )

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        workers = self._loader.num_workers
        if workers and self._length:
            allow_open_files(workers)
            in_flight = workers * (self._loader.prefetch_factor or 1) + 1  # and the one that is being used
            check_shared_memory(self._batch_bytes(), min(self._length, in_flight))
        try:
            batches = iter(self._loader)
            while window := list(islice(batches, self._window)):
                yield from in_one_window(window)
        except (RuntimeError, OSError) as error:
            known = explained(error, self._timeout) if workers else None
            if known is None:
                raise
            raise known from error

    def _batch_bytes(self) -> int:
        """Bytes of the first batch, which is made for this."""
        order, first = self._first
        return _num_bytes(self._collate([self._dataset[sample] for sample in order.batch(first)]))


def _num_bytes(batch: Any) -> int:
    """Bytes of the tensors of a batch."""
    if isinstance(batch, Tensor):
        return batch.numel() * batch.element_size()
    if dataclasses.is_dataclass(batch):
        return sum(_num_bytes(getattr(batch, field.name)) for field in dataclasses.fields(batch))
    return 0


class _Piece(Sequence[list[Sample]]):
    def __init__(self, order: SampleOrder, start: int, stop: int) -> None:
        self._order = order
        self._numbers = range(start, stop)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, i: Any) -> Any:
        return self._order.batch(self._numbers[i])
