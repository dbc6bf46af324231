"""The order of images: a function of (seed, epoch), the same for any number of workers and processes."""

from __future__ import annotations

import numpy as np

from siamdetr.images.randomness import order_random

Sample = tuple[int, int]  # (epoch, position in the index)


class SampleOrder:
    """The samples of each batch of this process.

    Batches are counted from the start of training over all epochs.

    The order of an epoch is cut into steps of `batch_size * world_size` images, and each process takes its share of
    every step: N processes with batches of B see at each step what one process with batches of N·B sees. So that all
    processes have the same number, the last step is filled up from the beginning of the order.

    Args:
        length: images in the data set, at least 1.
        seed: of the order.
        batch_size: images a process and a step.
        rank: this process, 0..world_size-1.
        world_size: number of processes.
    Raises:
        ValueError: a number out of range.

    Attributes: `num_batches` of an epoch.
    """

    def __init__(self, length: int, *, seed: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if length < 1:
            raise ValueError(f"sampler: got a data set of {length} images, expected at least one")
        if batch_size < 1:
            raise ValueError(f"sampler: got batch_size {batch_size}, expected at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"sampler: got rank {rank} of {world_size} processes, expected 0..{world_size - 1}")
        self.length, self.seed, self.batch_size = length, seed, batch_size
        self.rank, self.world_size = rank, world_size
        self.num_batches = -(-length // (batch_size * world_size))
        self._epoch, self._steps = -1, np.zeros((0, world_size, batch_size), dtype=np.int64)

    def batch(self, number: int) -> list[Sample]:
        """The samples of batch `number`."""
        epoch, step = divmod(number, self.num_batches)
        if epoch != self._epoch:
            self._epoch, self._steps = epoch, self._order(epoch)
        return [(epoch, int(i)) for i in self._steps[step, self.rank]]

    def _order(self, epoch: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.int64]]:
        """[num_batches, world_size, batch_size] positions in the index."""
        order = order_random(self.seed, epoch).permutation(self.length)
        return np.resize(order, (self.num_batches, self.world_size, self.batch_size)).astype(np.int64)
