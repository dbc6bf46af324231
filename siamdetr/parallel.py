"""Where many independent tasks run: threads, processes of this machine, or a Ray cluster. Ours holds no scheduler: each is an existing engine."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from typing import Any, Literal, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_WAITING = 2  # tasks handed out beyond those that run, for each worker: a million would only fill the memory


class EngineError(ValueError):
    """Tasks cannot run where they were sent; the text says why and what to do."""


@dataclass(frozen=True)
class Engine:
    """Where tasks run.

    Attributes:
        kind: "here", one after the other; "threads" of this process (for functions that leave Python's lock); "processes", started
            afresh (spawn), which end with this one however it ends; or "ray".
        workers: threads or processes; None: one a core. Ray counts for itself.
        address: of the Ray cluster: "auto", "ray://host:port", or "local" to start one on this machine.
        cpus, gpus: what a task occupies on the Ray cluster.
        retries: how often Ray repeats a task whose machine or process died.
        fresh: "processes": a new one for each task, so that its peak of memory is its own.
    """

    kind: Literal["here", "threads", "processes", "ray"] = "threads"
    workers: int | None = None
    address: str | None = None
    cpus: float = 1
    gpus: float = 0
    retries: int = 2
    fresh: bool = False

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Results as they become ready, in any order. A task that raises ends the iteration with its error; the others are called off.

        Args:
            function: of a module's top level; with "processes" and "ray" it and the tasks are sent to other processes.
            tasks: taken from the iterable only as workers become free.
        Raises:
            EngineError: Ray is not installed, or cannot be reached.
        """
        if self.kind == "ray":
            return _run_on_ray(function, tasks, self)
        if self.kind == "here":
            return map(function, tasks)
        count = self.workers or os.cpu_count() or 1
        pool: Executor = ThreadPoolExecutor(count)
        if self.kind == "processes":
            once = 1 if self.fresh else None
            spawn = get_context("spawn")
            pool = ProcessPoolExecutor(
                count, mp_context=spawn, max_tasks_per_child=once, initializer=_end_with_the_parent
            )
        return _run_in_pool(pool, function, tasks, window=count * (1 + _WAITING))


def _end_with_the_parent() -> None:
    """In a worker: leave when the process that started it is killed, for nobody else would say that there is no more work."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_in_pool(
    pool: Executor, function: Callable[[Task], Result], tasks: Iterable[Task], *, window: int
) -> Iterator[Result]:
    rest = iter(tasks)
    waiting: set[Future[Result]] = set()
    try:
        while True:
            while len(waiting) < window and (task := next(rest, None)) is not None:
                waiting.add(pool.submit(function, task))
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run_on_ray(function: Callable[[Task], Result], tasks: Iterable[Task], engine: Engine) -> Iterator[Result]:
    ray = _connected(engine)
    remote = ray.remote(num_cpus=engine.cpus, num_gpus=engine.gpus, max_retries=engine.retries)(function)
    window = max(1, int(ray.cluster_resources().get("CPU", 1))) * (1 + _WAITING)
    rest = iter(tasks)
    waiting: list[Any] = []
    try:
        while True:
            while len(waiting) < window and (task := next(rest, None)) is not None:
                waiting.append(remote.remote(task))
            if not waiting:
                return
            done, waiting = ray.wait(waiting)
            yield from ray.get(done)
    finally:
        ray.shutdown()


def _connected(engine: Engine) -> Any:
    try:
        import ray
    except ImportError:
        raise EngineError("--ray needs Ray, which is an extra: pip install 'siamdetr[study]'") from None
    here = engine.address == "local"
    try:
        ray.init(
            address="local" if here else engine.address,
            num_cpus=engine.workers if here else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EngineError(
            f"--ray {engine.address}: no Ray cluster answers there ({reason}); start one with `ray start --head`, "
            "or give --ray local for one on this machine"
        ) from None
    return ray
