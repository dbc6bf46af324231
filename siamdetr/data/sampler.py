"""Which image comes when: a function of (seed, epoch), the same for any number of workers and processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from siamdetr.data.randomness import order_random


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) for a data set whose items are functions of that pair.

    The order of an epoch is cut into steps of `batch_size * world_size` images, and each process takes its share of every step: N
    processes with batches of B see at each step what one process with batches of N·B sees. So that all have as many, the last step is filled
    up from the beginning of the order, or left out.

    Args:
        length: images in the data set, at least 1.
        seed: of the order.
        batch_size: images a process and a step.
        shuffle: False: 0, 1, 2, ...
        rank: this process, 0..world_size-1.
        world_size: number of processes.
        drop_last: leave the incomplete last step out (unless it is the only one).
    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        batch_size: int,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        if length < 1:
            raise ValueError(f"sampler: got a data set of {length} images, expected at least one")
        if batch_size < 1:
            raise ValueError(f"sampler: got batch_size {batch_size}, expected at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"sampler: got rank {rank} of {world_size} processes, expected 0..{world_size - 1}")
        self.length, self.seed, self.shuffle, self.batch_size = length, seed, shuffle, batch_size
        self.rank, self.world_size = rank, world_size
        step = batch_size * world_size
        self.num_batches = max(1, length // step) if drop_last else -(-length // step)
        self.epoch = 0
        self._resume: tuple[int, int] = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def resume_at(self, epoch: int, batch: int) -> None:
        """Continue: `epoch` starts at its batch number `batch`; every other epoch starts at 0.

        Raises:
            ValueError: the epoch has fewer batches.
        """
        if not 0 <= batch <= self.num_batches:
            raise ValueError(f"sampler: cannot resume at batch {batch}, an epoch has {self.num_batches}")
        self.epoch, self._resume = epoch, (epoch, batch)

    def order(self, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """[num_batches * batch_size * world_size] indices of all processes, step after step."""
        order = order_random(self.seed, epoch).permutation(self.length) if self.shuffle else np.arange(self.length)
        return np.resize(order, self.num_batches * self.batch_size * self.world_size).astype(np.int64)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        first = self._resume[1] if self._resume[0] == epoch else 0
        steps = self.order(epoch).reshape(self.num_batches, self.world_size, self.batch_size)
        for index in steps[first:, self.rank].reshape(-1):
            yield epoch, int(index)

    def __len__(self) -> int:
        """Items of this process in a whole epoch, wherever it is resumed."""
        return self.num_batches * self.batch_size
