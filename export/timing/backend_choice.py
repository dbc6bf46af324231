"""The fastest runtime for an exported model on this machine. Imports no torch.

It is measured once, and then read from the user's cache.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np

from siamdetr.errors import ExportError
from siamdetr.export.bundle import digest_file, find_onnx
from siamdetr.export.gate.images import drawn_images
from siamdetr.export.runtime import OnnxDetector
from siamdetr.export.sessions import OnnxBackend, cuda_at_hand
from siamdetr.images.preprocessing import Prepared, preprocess
from siamdetr.system.atomic_file import atomic_text
from siamdetr.system.threads import usable_cores

logger = logging.getLogger(__name__)

Name = TypeVar("Name")

_SECONDS = 2.0  # of timing, over all candidates
_MOST_ROUNDS = 7
_SHAPE = (480, 640)  # (H, W) of the picture that is timed, before preprocessing


@dataclass(frozen=True)
class Choice:
    """A runtime and its threads, and the median milliseconds of every candidate."""

    backend: OnnxBackend
    threads: int
    milliseconds: Mapping[str, float]


def cache_file() -> Path:
    """The file of choices: in the user's cache folder, because a bundle may go to another machine."""
    root = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(root) / "siamdetr" / "backends.json"


def choose_backend(
    path: str | Path, *, device: str = "cpu", threads: int | None = None
) -> tuple[OnnxBackend, int | None]:
    """The runtime and the number of threads for a model: on the CPU `fastest`, on a GPU ONNX Runtime.

    Args:
        path: a bundle or .onnx file.
        device: "cpu", "cuda", "cuda:N" or "auto": the GPU where there is one.
        threads: number of threads to use; None: any number.
    Raises:
        ExportError: no runtime opens the file.
    """
    if device != "cpu" and not (device == "auto" and not cuda_at_hand()):
        return "onnxruntime", threads
    choice = fastest(path, threads=threads)
    return choice.backend, choice.threads


def fastest(path: str | Path, *, threads: int | None = None) -> Choice:
    """The fastest of the installed runtimes for a model on the CPU.

    The first time the candidates take turns for about two seconds; later the answer comes from `cache_file()`. It is
    measured again when the model, the number of cores, the processor or a runtime's version changes.

    Args:
        path: a bundle or .onnx file.
        threads: number of threads to use; None: all usable cores and half of them are tried.
    Raises:
        ExportError: no runtime opens the file.
    """
    file = find_onnx(path)
    cores = usable_cores()
    counts = [threads] if threads is not None else sorted({cores, max(1, cores // 2)}, reverse=True)
    key = json.dumps([digest_file(file), platform.processor() or platform.machine(), cores, counts, _versions()])
    known = _read()
    if key in known:
        return known[key]
    found = _measure(file, counts)
    _remember({**known, key: found})
    times = ", ".join(f"{name} {value:.0f} ms" for name, value in found.milliseconds.items())
    logger.info("%s: %s with %d threads is the fastest here (%s)", path, found.backend, found.threads, times)
    return found


def _versions() -> dict[str, str]:
    import onnxruntime

    found = {"onnxruntime": onnxruntime.__version__}
    return found | ({"openvino": version("openvino")} if "openvino" in installed_backends() else {})


def _measure(file: Path, counts: list[int]) -> Choice:
    candidates: dict[str, tuple[OnnxBackend, int, OnnxDetector]] = {}
    failure: ExportError | None = None
    for backend in installed_backends():
        for count in counts:
            try:
                opened = OnnxDetector(file, threads=count, backend=backend)
            except ExportError as error:  # such as bfloat16 under ONNX Runtime
                failure = error
                continue
            candidates[f"{backend}, {count} threads"] = (backend, count, opened)
    if not candidates:
        assert failure is not None
        raise failure
    times = take_turns({name: opened for name, (_, _, opened) in candidates.items()})
    best = min(times, key=lambda name: times[name])
    return Choice(candidates[best][0], candidates[best][1], times)


def installed_backends() -> tuple[OnnxBackend, ...]:
    """The runtimes for .onnx files that are installed."""
    return ("onnxruntime", "openvino") if importlib.util.find_spec("openvino") is not None else ("onnxruntime",)


def take_turns(models: Mapping[Name, OnnxDetector]) -> dict[Name, float]:
    """Time some models in turns for about two seconds; returns median milliseconds of one image of each.

    A first round is not counted.
    """
    picture = drawn_images(1, *_SHAPE)[0].transpose(1, 2, 0)
    batches: dict[Name, Prepared] = {
        name: preprocess([np.ascontiguousarray(picture)], model.preprocessing) for name, model in models.items()
    }
    seconds: dict[Name, list[float]] = {name: [] for name in models}
    started = time.perf_counter()
    for turn in range(_MOST_ROUNDS + 1):
        for name, model in models.items():
            begin = time.perf_counter()
            model.predict_batch(batches[name])
            seconds[name].append(time.perf_counter() - begin)
        if turn and time.perf_counter() - started > _SECONDS:
            break
    return {name: 1000 * median(values[1:]) for name, values in seconds.items()}


def _read() -> dict[str, Choice]:
    try:
        content = json.loads(cache_file().read_text(encoding="utf-8"))
        return {key: Choice(**values) for key, values in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # none yet, or damaged: measure again
        return {}


def _remember(choices: Mapping[str, Choice]) -> None:
    text = json.dumps({key: asdict(choice) for key, choice in choices.items()}, indent=1)
    try:
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        atomic_text(cache_file(), text + "\n")
    except OSError as error:
        logger.warning("%s cannot be written (%s): the runtimes are timed again next time", cache_file(), error)
