"""Limits on loading processes: shared memory for their batches, and open files."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from siamdetr.errors import LoadingError
from siamdetr.system.processes import resource

_FILES_A_WORKER = 16  # tensors that are on their way from it, and its pipes
_SHM = Path("/dev/shm")
_WAYS_OUT = "start the container with --shm-size=2g (or --ipc=host), take a smaller batch, or load in this process with --workers 0"


def check_shared_memory(batch_bytes: int, batches: int, place: Path = _SHM) -> None:
    """Check that the batches of the loading processes fit into shared memory.

    Without room they die or hang in the middle of a run.

    Args:
        batch_bytes: of one batch.
        batches: that may be there at the same time.
        place: the folder of shared memory; a system without it has no such limit.
    Raises:
        LoadingError: there is not enough.
    """
    try:
        free, needed = shutil.disk_usage(place).free, batch_bytes * batches
    except OSError:
        return
    if needed > free:
        raise LoadingError(
            f"{place}: {free / 2**20:.0f} MiB of shared memory are free, but {batches} batches of {batch_bytes / 2**20:.1f} MiB pass "
            f"through it; {_WAYS_OUT}"
        )


def allow_open_files(workers: int) -> None:
    """Raise the limit of open files as far as the system lets a user, and check that it suffices.

    Each tensor that a loading process hands over takes one. Where none is left, Python's exchange of them never ends.

    Args:
        workers: loading processes.
    Raises:
        LoadingError: the limit leaves too few for so many processes.
    """
    if resource is None:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and hard != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    if soft != resource.RLIM_INFINITY and soft - psutil.Process().num_fds() < _FILES_A_WORKER * workers:
        raise _few_open_files()


def _few_open_files() -> LoadingError:
    soft = "" if resource is None else f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]} "
    return LoadingError(
        f"loading: the limit of {soft}open files is reached (ulimit -n); raise it, for example ulimit -n 65536, take fewer "
        "--workers, or load in this process with --workers 0"
    )


def explained(error: BaseException, timeout: int) -> LoadingError | None:
    """What an error of loading processes means, in a line; None: something else.

    Args:
        error: as PyTorch's loader raised it.
        timeout: seconds after which it gives up on a process.
    """
    text = " ".join(str(error).split())
    low = text.lower()
    if "too many open files" in low or "received 0 items of ancdata" in low:
        return _few_open_files()
    if "bus error" in low or "shared memory" in low or "/torch_" in low or "no space left on device" in low:
        return LoadingError(f"loading: {_SHM}, the shared memory, is full; {_WAYS_OUT}")
    if "timed out after" in low:
        return LoadingError(
            f"loading: no batch came for {timeout} s: a process hangs, the disk is slow, or {_SHM} is full; set worker_timeout "
            "higher, or load in this process with --workers 0"
        )
    if "dataloader worker" in low and ("killed" in low or "exited unexpectedly" in low):
        return LoadingError(
            f"loading: a process was killed ({text[:160]}), perhaps because memory ran out; take fewer --workers or smaller batches"
        )
    return None
