"""Read and resize the images of a data set for scoring, several at a time."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import ImageError
from siamdetr.images.preprocessing import PreprocessingSpec, Sample, prepare_sample, resized_size

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def read_samples(index: DetectionIndex, spec: PreprocessingSpec, workers: int) -> Iterator[tuple[int, Sample]]:
    """Yield position and prepared image of every readable image.

    Images of equal resized size follow each other.
    """
    sizes = [resized_size((int(h), int(w)), spec) if h and w else (0, 0) for h, w in index.sizes]
    order = sorted(range(len(index)), key=lambda i: sizes[i])

    def read(i: int) -> tuple[int, Sample] | None:
        try:
            return i, prepare_sample(index.path(i), spec)
        except ImageError as error:
            logger.warning("Scored as an image without detections: %s", error)
            return None

    yield from (sample for sample in _ordered_map(read, order, workers) if sample is not None)


def _ordered_map(function: Callable[[Item], Answer], items: Sequence[Item], workers: int) -> Iterator[Answer]:
    """`map` over threads, at most a few items ahead of the caller."""
    if workers == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        rest = iter(items)
        pending = deque(pool.submit(function, item) for item in islice(rest, 2 * workers))
        try:
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in islice(rest, 1))
        finally:
            for future in pending:
                future.cancel()
