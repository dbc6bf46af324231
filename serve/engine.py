"""The path of an image through the server.

It is admitted or refused immediately, decoded in a thread and run; its detections are filtered by the threshold.

All is bounded: admitted images (`queue_size`), decoded images without an answer, model calls, seconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import numpy as np

from siamdetr.errors import NonFiniteOutputError
from siamdetr.images.preprocessing import Prepared, resized_size, stack
from siamdetr.inference.predictor import Predictor, ScoredBoxes, select
from siamdetr.serve.batcher import Batcher
from siamdetr.serve.image_gate import prepare
from siamdetr.serve.metrics import Metrics
from siamdetr.serve.multipart_form import File
from siamdetr.serve.refusals import Refused
from siamdetr.serve.settings import ServeSettings

logger = logging.getLogger(__name__)

RETRY_AFTER = 1  # seconds

T = TypeVar("T")


class Engine:
    """A model behind a bounded queue.

    Args:
        model: it is held, not copied.
        settings: queue, batches and limits.
        metrics: where stages are counted.
    """

    def __init__(self, model: Predictor, settings: ServeSettings, metrics: Metrics) -> None:
        self.model = model
        self.settings = settings
        self._metrics = metrics
        self._in_flight = 0
        self._warm = False
        self._stopping = False

    async def start(self) -> None:
        """Start the threads and the warm-up.

        `ready` becomes true afterwards; if there are several processes, this one waits for it.
        """
        settings = self.settings
        decoders = max(2, settings.runners)
        self._decoders = ThreadPoolExecutor(decoders, thread_name_prefix="decode")
        # So many decoded images keep every runner in full batches; the rest of the queue stays compressed.
        self._decoded = asyncio.Semaphore(settings.max_batch * settings.runners + max(decoders, settings.max_batch))
        self._batcher = Batcher(
            self.model,
            self._metrics,
            runners=settings.runners,
            max_batch=settings.max_batch,
            max_delay=settings.max_delay,
        )
        self._warming = asyncio.create_task(self._warm_up())
        if settings.workers > 1:  # on a shared socket, a cold process would take requests from the warm ones
            await self._warming

    async def stop(self) -> None:
        """End the threads. Requests in progress have been answered by then."""
        self._stopping = True
        self._warming.cancel()
        await asyncio.gather(self._warming, return_exceptions=True)
        await self._batcher.stop()
        self._decoders.shutdown(wait=True, cancel_futures=True)

    @property
    def ready(self) -> bool:
        """Whether the server has warmed up and is not stopping."""
        return self._warm and not self._stopping

    @property
    def full(self) -> bool:
        """Whether the queue is full, so that no further image is admitted."""
        return self._in_flight >= self.settings.queue_size

    async def detect(self, files: Sequence[File], *, threshold: float, max_detections: int) -> list[dict[str, Any]]:
        """The detections of some images, in order.

        Args:
            files: the images.
            threshold: least score.
            max_detections: of one image; the best are kept.
        Returns:
            For each: width, height and detections (box x0 y0 x1 y1 in pixels of the upright image, score, label, name).
        Raises:
            Refused: an image is refused (413, 415, 422), the queue is full (429), the deadline has passed (504), or an
                output is not finite (500).
        """
        several = len(files) > 1
        with self._admitted(len(files)):
            work = [
                asyncio.create_task(
                    self._detect_one(file, _name(file, i if several else None), threshold, max_detections)
                )
                for i, file in enumerate(files)
            ]
            try:
                async with self._deadline():
                    return await asyncio.gather(*work)
            finally:
                for one in work:
                    one.cancel()

    async def infer(self, batch: Prepared) -> ScoredBoxes:
        """All scored boxes of a batch of prepared images.

        Raises:
            Refused: the queue is full (429), or the deadline has passed (504).
        """
        with self._admitted(len(batch)):
            async with self._deadline():
                return await self._run(batch)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run a function that would block the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)

    async def _detect_one(self, file: File, name: str, threshold: float, max_detections: int) -> dict[str, Any]:
        async with self._decoded:
            batch = await self.in_thread(lambda: self._prepare(file.data, name))
            scored = await self._run(batch)
        height, width = batch.original_sizes[0].tolist()
        with self._metrics.timed("post"):
            return self._answer(scored, (height, width), threshold, max_detections)

    async def _run(self, batch: Prepared) -> ScoredBoxes:
        try:
            return await self._batcher.run(batch)
        except NonFiniteOutputError as error:
            logger.error("%s", error)
            raise Refused(500, str(error)) from None

    def _prepare(self, data: bytes, name: str) -> Prepared:
        """Prepare a batch of one image."""
        spec = self.model.preprocessing
        with self._metrics.timed("decode"):
            return stack([prepare(data, spec, self.settings.limits, name=name)], spec)

    def _answer(
        self, scored: ScoredBoxes, size: tuple[int, int], threshold: float, max_detections: int
    ) -> dict[str, Any]:
        names = self.model.class_names
        found = select(scored, 0, size, threshold=threshold)
        best = slice(max_detections)
        rows = zip(found.boxes[best].tolist(), found.scores[best].tolist(), found.labels[best].tolist(), strict=True)
        return {
            "width": size[1],
            "height": size[0],
            "detections": [
                {"box": box, "score": score, "label": label, "name": names[label]} for box, score, label in rows
            ],
        }

    @contextmanager
    def _admitted(self, num_images: int) -> Iterator[None]:
        if self._in_flight + num_images > self.settings.queue_size:
            self._metrics.rejected.labels("queue full").inc()
            raise queue_full(self.settings.queue_size)
        self._count(num_images)
        try:
            yield
        finally:
            self._count(-num_images)

    def _count(self, num_images: int) -> None:
        self._in_flight += num_images
        self._metrics.in_flight.set(self._in_flight)

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        seconds = self.settings.limits.inference_seconds
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            self._metrics.rejected.labels("deadline").inc()
            raise Refused(
                504, f"no answer within {seconds:g} s; the server is overloaded or the image too large"
            ) from None

    async def _warm_up(self) -> None:
        """Run the largest and the smallest batch, so that no client waits for allocations."""
        height, width = resized_size((480, 640), self.model.preprocessing)
        picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)  # shows overflows best
        try:
            for rows in (self.settings.max_batch, 1):
                await self._batcher.run(stack([(picture, (480, 640))] * rows, self.model.preprocessing))
        except Exception:
            logger.exception("Never ready: the model cannot run.")
            raise
        self._warm = True
        logger.info("Ready: %s, classes %s.", self.settings.model_name, ", ".join(self.model.class_names[:8]))


def queue_full(queue_size: int) -> Refused:
    """The refusal of a request when the queue is full."""
    return Refused(
        429, f"the queue of {queue_size} images is full; come again after Retry-After", retry_after=RETRY_AFTER
    )


def _name(file: File, position: int | None) -> str:
    """The name of an image in refusals: the client's file name, shortened and never opened."""
    image = "image" if position is None else f"image {position}"
    return f"{image} ({file.filename[:80]!r})" if file.filename else image
