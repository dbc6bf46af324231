"""`map` over threads, in order, a few items ahead of the caller."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def ordered_map(
    function: Callable[[Item], Answer], items: Iterable[Item], workers: int, *, ahead: int | None = None
) -> Iterator[Answer]:
    """Yield `function(item)` of each item, computed by threads before the caller asks.

    Items are taken from the iterable in the caller's thread, so such maps can be chained as the stages of a pipeline.

    Args:
        function: should release Python's lock most of the time, as decoding and resizing images does.
        items: may be endless; only the items ahead are held.
        workers: threads; 0: the caller's own.
        ahead: items taken before the answer that the caller waits for; default: 2 for each thread.
    """
    if workers == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        rest = iter(items)
        pending = deque(pool.submit(function, item) for item in islice(rest, ahead or 2 * workers))
        try:
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in islice(rest, 1))
        finally:
            for future in pending:
                future.cancel()
