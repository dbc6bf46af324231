"""Run many independent tasks in threads, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from typing import Any, Literal, TypeVar

from siamdetr.errors import EngineError
from siamdetr.system.signals import SIGNALS, SignalWatch
from siamdetr.system.threads import usable_cores

Task = TypeVar("Task")
Result = TypeVar("Result")

_WAITING = 2  # tasks handed out beyond those that run, for each worker: a million would only fill the memory
_POLL = 0.2  # seconds between two calls of `stopped`


def _never() -> bool:
    return False


@dataclass(frozen=True)
class TaskRunner:
    """The place where tasks run.

    Attributes:
        kind: "here", one after the other; "threads" of this process (for functions that release Python's lock);
            "processes", spawned, which end with this one however it ends; or "ray".
        workers: threads or processes; None: one for each core that this process may use. Ray counts for itself.
        address: of the Ray cluster: "auto", "ray://host:port", or "local" to start one on this machine.
        cpus, gpus: resources of a task on the Ray cluster.
        retries: how often Ray repeats a task whose machine or process died.
        fresh: "processes": a new process for each task, so that its peak memory is its own.
    """

    kind: Literal["here", "threads", "processes", "ray"] = "threads"
    workers: int | None = None
    address: str | None = None
    cpus: float = 1
    gpus: float = 0
    retries: int = 2
    fresh: bool = False

    def run(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], *, stopped: Callable[[], bool] = _never
    ) -> Iterator[Result]:
        """Yield results as they become ready, in any order.

        A task that raises ends the iteration with its error and cancels the others.

        Args:
            function: of a module's top level; with "processes" and "ray" it and the tasks are sent to other processes.
            tasks: taken from the iterable only as workers become free.
            stopped: polled; once it returns True, no further task begins. Running tasks go on to their end and give
                their results; in processes, where a `SignalWatch` in them finds SIGTERM received. Tasks on Ray are
                given up.
        Raises:
            EngineError: Ray is not installed, or cannot be reached; a process was killed.
        """
        if self.kind == "ray":
            return _run_on_ray(function, tasks, self, stopped)
        if self.kind == "here":
            return _run_here(function, tasks, stopped)
        count = self.workers or usable_cores()
        if self.kind == "processes":
            return _run_in_processes(function, tasks, count=count, fresh=self.fresh, stopped=stopped)
        pool, window = ThreadPoolExecutor(count), count * (1 + _WAITING)
        return _run_in_pool(pool, function, tasks, window=window, stopped=stopped, call_off=lambda: None)


def _run_here(
    function: Callable[[Task], Result], tasks: Iterable[Task], stopped: Callable[[], bool]
) -> Iterator[Result]:
    for task in tasks:
        if stopped():
            return
        yield function(task)


def _run_in_pool(
    pool: Executor,
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    window: int,
    stopped: Callable[[], bool],
    call_off: Callable[[], None],
) -> Generator[Result, None, None]:
    rest = iter(tasks)
    waiting: set[Future[Result]] = set()
    try:
        while True:
            while not stopped() and len(waiting) < window and (task := next(rest, None)) is not None:
                with _signals_held_back():
                    waiting.add(pool.submit(function, task))
            if not waiting:
                return
            done, waiting = wait(waiting, timeout=_POLL, return_when=FIRST_COMPLETED)
            if stopped():
                call_off()
                waiting = {future for future in waiting if not future.cancel()}
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        if not stopped():
            raise EngineError(
                "a process was killed, perhaps because memory ran out; fewer at a time need less"
            ) from None
    finally:
        call_off()
        pool.shutdown(wait=True, cancel_futures=True)


def _run_in_processes(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, count: int, fresh: bool, stopped: Callable[[], bool]
) -> Iterator[Result]:
    """Run in processes that hold a pipe from this one.

    It closes when they should stop, and when this process dies.
    """
    context = get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    once = 1 if fresh else None
    pool = ProcessPoolExecutor(
        count, mp_context=context, initializer=_begin_worker, initargs=(theirs,), max_tasks_per_child=once
    )
    answers = _run_in_pool(
        pool,
        _unless_called_off,
        ((function, task) for task in tasks),
        window=count * (1 + _WAITING),
        stopped=stopped,
        call_off=ours.close,
    )
    with closing(answers):
        for answer in answers:
            yield from answer


def _begin_worker(lifeline: connection.Connection) -> None:
    """Prepare a new process: from now on only the pipe stops it, not the terminal's signals."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch = SignalWatch().__enter__()  # never left: it is the outermost of this process
    threading.Thread(target=_hang_on, args=(lifeline, watch), daemon=True).start()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _hang_on(lifeline: connection.Connection, watch: SignalWatch) -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([lifeline, parent.sentinel])
    watch.stop(signal.SIGTERM)
    parent.join()
    os._exit(128 + signal.SIGTERM)  # it has died, and nobody would take an answer


def _unless_called_off(task: tuple[Callable[[Task], Result], Task]) -> list[Result]:
    """The result of a task; none if it was sent before the stop and would begin after it."""
    function, argument = task
    with SignalWatch() as watch:
        return [] if watch.received is not None else [function(argument)]


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Start processes inside the block with SIGINT and SIGTERM blocked (not on Windows)."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_on_ray(
    function: Callable[[Task], Result], tasks: Iterable[Task], engine: TaskRunner, stopped: Callable[[], bool]
) -> Iterator[Result]:
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
            done, waiting = ray.wait(waiting, timeout=_POLL)
            yield from ray.get(done)
            if stopped():
                return  # leaving the cluster ends the tasks
    finally:
        ray.shutdown()


def _connected(engine: TaskRunner) -> Any:
    try:
        import ray
    except ImportError:
        raise EngineError("--ray needs Ray, which is an extra: pip install 'siamdetr[study]'") from None
    here = engine.address == "local"
    handler = signal.getsignal(signal.SIGTERM)
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
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray has put its own, which ends the program
    return ray
