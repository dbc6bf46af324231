"""Call the model from an event loop: a few calls at a time, in threads.

With micro-batching, images of one size are joined.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from siamdetr.errors import NonFiniteOutputError
from siamdetr.images.preprocessing import Prepared
from siamdetr.inference.predictor import Predictor, ScoredBoxes, check_finite
from siamdetr.serve.metrics import Metrics


@dataclass(frozen=True, eq=False)
class _Waiting:
    unit: Prepared
    answer: asyncio.Future[ScoredBoxes]
    since: float  # perf_counter


class Batcher:
    """Run units, each some images of equal size, on a model; the oldest first.

    A unit is dropped if its deadline has passed or its client has left.

    Args:
        model: whose `predict_batch` is called, from `runners` threads.
        runners: calls at the same time.
        max_batch: most images of joined units; a larger unit runs alone.
        max_delay: longest wait for other units while a runner is free, in seconds.
    """

    def __init__(self, model: Predictor, metrics: Metrics, *, runners: int, max_batch: int, max_delay: float) -> None:
        self._model, self._metrics = model, metrics
        self._max_batch, self._max_delay = max_batch, max_delay
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._threads = ThreadPoolExecutor(runners, thread_name_prefix="model")
        self._runners = [asyncio.create_task(self._run_forever()) for _ in range(runners)]

    async def run(self, unit: Prepared) -> ScoredBoxes:
        """The model's output for a unit.

        Raises:
            NonFiniteOutputError: an output is not finite.
        """
        answer: asyncio.Future[ScoredBoxes] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(unit, answer, perf_counter())
        self._waiting.append(waiting)
        self._arrived.set()
        try:
            return await answer
        finally:  # a caller that gives up drops its images, so that a long model call does not keep them in memory
            with contextlib.suppress(ValueError):
                self._waiting.remove(waiting)

    async def stop(self) -> None:
        """End the runners; no unit may be running."""
        for runner in self._runners:
            runner.cancel()
        await asyncio.gather(*self._runners, return_exceptions=True)
        self._threads.shutdown(wait=True)

    async def _run_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            started = perf_counter()
            for one in batch:
                self._metrics.stage("queue", started - one.since)
            try:
                scored = await loop.run_in_executor(self._threads, self._call, [one.unit for one in batch])
            except Exception as error:
                for one in batch:
                    if not one.answer.done():
                        one.answer.set_exception(error)
                continue
            self._metrics.stage("model", perf_counter() - started)
            for one, answer in zip(batch, scored, strict=True):
                _settle(one.answer, answer)

    async def _next_batch(self) -> list[_Waiting]:
        while True:
            self._waiting = [one for one in self._waiting if not one.answer.done()]
            if not self._waiting:
                await self._arrival()
                continue
            batch = self._joined_with_oldest()
            left = batch[0].since + self._max_delay - perf_counter()
            if sum(len(one.unit) for one in batch) >= self._max_batch or left <= 0:
                self._waiting = [one for one in self._waiting if one not in batch]
                return batch
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._arrival()

    async def _arrival(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()

    def _joined_with_oldest(self) -> list[_Waiting]:
        """The oldest unit, and in order further units of its size that fit into the batch."""
        oldest = self._waiting[0]
        batch, rows = [oldest], len(oldest.unit)
        for one in self._waiting[1:]:
            if one.unit.images.shape[1:] == oldest.unit.images.shape[1:] and rows + len(one.unit) <= self._max_batch:
                batch.append(one)
                rows += len(one.unit)
        return batch

    def _call(self, units: Sequence[Prepared]) -> list[ScoredBoxes]:
        joined = units[0] if len(units) == 1 else join(units)
        self._metrics.batch_size.observe(len(joined))
        scored = self._model.predict_batch(joined)
        ends = np.cumsum([len(unit) for unit in units])
        return [
            ScoredBoxes(
                scored.scores[end - len(unit) : end],
                scored.labels[end - len(unit) : end],
                scored.boxes[end - len(unit) : end],
            )
            for unit, end in zip(units, ends, strict=True)
        ]


def _settle(answer: asyncio.Future[ScoredBoxes], scored: ScoredBoxes) -> None:
    """Answer a unit; an output that is not finite is an error of that unit only."""
    if answer.done():
        return
    try:
        for row in range(len(scored.scores)):
            check_finite(scored, row)
    except NonFiniteOutputError as error:
        answer.set_exception(error)
    else:
        answer.set_result(scored)


def join(units: Sequence[Prepared]) -> Prepared:
    """Join units of equal image size into one batch."""
    return Prepared(
        images=np.concatenate([unit.images for unit in units]),
        padding=_joined_padding(units),
        original_sizes=np.concatenate([unit.original_sizes for unit in units]),
        sizes=np.concatenate([unit.sizes for unit in units]),
    )


def _joined_padding(units: Sequence[Prepared]) -> NDArray[np.bool_] | None:
    if all(unit.padding is None for unit in units):
        return None
    return np.concatenate(
        [
            np.zeros((len(unit), *unit.images.shape[2:]), np.bool_) if unit.padding is None else unit.padding
            for unit in units
        ]
    )
