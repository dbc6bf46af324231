"""Run the application in one process or several on one socket, with an orderly end at SIGTERM."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from siamdetr.api import Backend, load, resolve_backend
from siamdetr.errors import ServeError
from siamdetr.files import kind_of
from siamdetr.inference.predictor import Predictor
from siamdetr.serve.log_lines import log_in_lines
from siamdetr.serve.metrics import MULTIPROCESS_VARIABLE
from siamdetr.serve.server import create_app
from siamdetr.serve.settings import ServeSettings
from siamdetr.system.heap import keep_little_memory, return_free_memory
from siamdetr.system.threads import usable_cores

logger = logging.getLogger(__name__)

_MAX_CONNECTIONS = 1024  # of a process, idle ones included; beyond that uvicorn refuses by itself


def serve(
    path: str | Path,
    settings: ServeSettings,
    *,
    device: str = "cpu",
    backend: Backend | None = None,
    threads: int | None = None,
    listening: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C, then finish the requests in progress and return.

    Args:
        path: whatever `siamdetr.load` opens.
        settings: address, processes, queue, limits.
        device: "cpu", "cuda", "cuda:N" or "auto".
        backend: as of `siamdetr.load`; "auto" takes the fastest with this number of threads, once for all processes.
        threads: of one model call on the CPU; None: the cores that this process may use, divided by the model calls at
            the same time.
        listening: called with the address once it is bound.
    Raises:
        ServeError: the address is taken or not ours, or one of several processes could not start.
        ValueError: the model cannot be opened.
    """
    threads = threads or max(1, usable_cores() // (settings.workers * settings.runners))
    chosen, _ = resolve_backend(path, device=device, backend=backend, threads=threads)
    model = open_model(path, device, threads, chosen)  # also with several processes: errors are reported once
    settings = replace(settings, platform=chosen)
    log_in_lines()
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every form that a client gets wrong
    listener = bind(settings)
    host, port = listener.getsockname()[:2]
    listening(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    logger.info("%s runs under %s, %d threads a call, on %s", path, chosen, threads, device)
    if settings.workers == 1:
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it once more after draining, which would kill
        uvicorn.Server(uvicorn_config(create_app(model, settings), settings)).run([listener])
        return
    del model
    factory = functools.partial(_create_in_worker, path, settings, device, threads, chosen)
    with tempfile.TemporaryDirectory(prefix="siamdetr-metrics-") as folder:
        os.environ[MULTIPROCESS_VARIABLE] = folder  # read by prometheus_client when a worker imports it
        workers = _Workers(uvicorn_config(factory, settings), [listener])
        workers.run()
    if any(process.exitcode == STARTUP_FAILURE for process in workers.processes):
        raise ServeError(f"{path}: a process of the server could not start; what it said above tells why")


def open_model(path: str | Path, device: str, threads: int, backend: Backend | None = None) -> Predictor:
    """An exported model, by default under ONNX Runtime and without PyTorch, or a checkpoint under PyTorch."""
    keep_little_memory()
    if kind_of(path) not in ("onnx", "bundle"):
        import torch

        torch.set_num_threads(threads)
    model: Predictor = load(path, device=device, backend=backend, threads=threads)
    return_free_memory()  # that reading the model has freed, about the size of the file
    return model


class _Workers(Multiprocess):
    """uvicorn's supervisor, which starts, watches and replaces the processes."""

    def init_processes(self) -> None:
        """Start all workers."""
        super().init_processes()
        self._leave_pipes()

    def keep_subprocess_alive(self) -> None:
        """Replace processes that have died."""
        super().keep_subprocess_alive()
        self._leave_pipes()

    def _leave_pipes(self) -> None:
        """Close the workers' ends of the pipes over which the supervisor checks them.

        If they stayed open here, a worker that died during a check would seem alive until the time-out.
        """
        for process in self.processes:
            process.child_conn.close()

    def terminate_all(self) -> None:
        """Stop listening first, so that new connections are refused at once instead of waiting."""
        for listener in self.sockets:
            listener.close()
        super().terminate_all()


def _create_in_worker(
    path: str | Path, settings: ServeSettings, device: str, threads: int, backend: Backend
) -> ASGIApp:
    _end_with_parent()
    log_in_lines()
    return create_app(open_model(path, device, threads, backend), settings)


def _end_with_parent() -> None:
    """Drain as at SIGTERM when the supervisor has died, so that no process serves unsupervised."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def uvicorn_config(app: object, settings: ServeSettings) -> uvicorn.Config:
    """The configuration of uvicorn for an application or its factory."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        factory=isinstance(app, functools.partial),
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=75,  # longer than load balancers keep idle connections, so that they close them first
        timeout_graceful_shutdown=settings.limits.drain_seconds,
        timeout_worker_healthcheck=60,  # a worker that loads a large model does not answer meanwhile
    )


def bind(settings: ServeSettings) -> socket.socket:
    """The socket to listen on, bound and inherited by workers.

    Raises:
        ServeError: the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # Named: asyncio sends small answers at once (TCP_NODELAY) only where a socket says that it is TCP, else 40 ms late.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ServeError(
            f"--host {settings.host} --port {settings.port}: cannot listen there ({error.strerror}); is another server "
            "running? Choose another --port"
        ) from None
    listener.set_inheritable(True)
    return listener
