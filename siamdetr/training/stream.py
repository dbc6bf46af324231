"""The order of the samples, and the loader that follows it from any position.

Training is one endless stream of shuffled passes over the data: sample s of the stream is image order(seed, pass)[s mod N] of
pass s div N. Batch b of process r is a fixed piece of that stream, so that a resumed run, another number of workers or another
number of processes (with the same total batch) sees the same samples. Batches may straddle two passes; nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

Sample = tuple[int, int]  # (pass, position in the index)


class SampleOrder:
    """Which samples make batch b of this process.

    Args:
        length: images.
        batch_size: samples a process and batch.
        seed: of the shuffles.
        rank, world_size: this process among all; together they take consecutive pieces of the stream.
    """

    def __init__(self, length: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    def batch(self, number: int) -> list[Sample]:
        """The samples of batch `number`, counted from the start of training."""
        first = (number * self.world_size + self.rank) * self.batch_size
        return [self._sample(position) for position in range(first, first + self.batch_size)]

    def _sample(self, position: int) -> Sample:
        epoch, place = divmod(position, self.length)
        return epoch, int(_shuffled(self.length, self.seed, epoch)[place])


@lru_cache(maxsize=4)
def _shuffled(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(length)


class BatchStream:
    """An iterable of batches [start, stop) in stream order, for Lightning's loop: not a DataLoader, so it is left alone.

    Args:
        dataset: takes (pass, position) and must be a function of them and its seed alone.
        collate: samples to a batch.
        order: which samples.
        start, stop: numbers of the first batch and of the one after the last.
        workers: loading processes; 0 loads in this one.
        timeout: seconds after which a hung worker is an error; 0: never.
        pin: page-locked memory, for a GPU.
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
    ) -> None:
        self._length = stop - start
        self._loader = DataLoader(
            dataset,
            batch_sampler=_Piece(order, start, stop),  # type: ignore[arg-type]  # any iterable of lists of keys
            collate_fn=collate,
            num_workers=workers,
            timeout=timeout if workers else 0,
            pin_memory=pin,
            generator=torch.Generator(),  # else it would draw from the global one, which belongs to the steps
        )

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)


class _Piece(Sequence[list[Sample]]):
    def __init__(self, order: SampleOrder, start: int, stop: int) -> None:
        self._order = order
        self._numbers = range(start, stop)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, i: Any) -> Any:
        return self._order.batch(self._numbers[i])
