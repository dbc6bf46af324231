"""Time and memory of a model in any runtime, before, in and after the network.

The host's clock times calls that return arrays in the host's memory. On a GPU this includes the copies, and nothing is
pending afterwards, so no events are needed.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from siamdetr.api import Model
from siamdetr.images.preprocessing import ImageLike, PreprocessingSpec, Size, preprocess
from siamdetr.inference.predictor import to_detections
from siamdetr.system.atomic_file import atomic_write
from siamdetr.system.plain_text import csv_cell
from siamdetr.system.processes import memory_mib

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Measurement:
    """One model at one batch and size.

    Milliseconds are of a whole batch: the median and the 95th percentile.
    """

    model: str
    runtime: str
    threads: int | None
    batch: int
    height: int
    width: int
    rounds: int
    pre_p50: float
    pre_p95: float
    model_p50: float
    model_p95: float
    post_p50: float
    post_p95: float
    total_p50: float
    total_p95: float
    images_per_second: float  # of the median total
    memory_mib: float | None  # growth of the process since before the model was opened; None: unknown
    ap: float | None = None  # 0..1, of the same file


def measure(
    model: Model,
    images: Sequence[ImageLike],
    *,
    name: str,
    runtime: str,
    batch: int = 1,
    size: int | Size | None = None,
    threads: int | None = None,
    rounds: int = 20,
    warmup: int = 3,
    memory_before: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Measurement:
    """Time a model.

    Args:
        model: opened, in any runtime.
        images: used in turn; reading and decoding of paths counts as "before".
        name: of the model, for the record.
        runtime: what runs it, for the record.
        batch: images a call.
        size: what the images are resized to, as `PreprocessingSpec.from_size` (letterbox: that square); None: the
            model's own.
        threads: that it was opened with, for the record.
        rounds: timed rounds.
        warmup: untimed rounds before them.
        memory_before: `memory_mib()` before the model was opened.
        progress: called with (rounds done, rounds in all).
    Raises:
        ValueError: a batch or a number of rounds below 1.
    """
    if min(batch, rounds) < 1 or warmup < 0:
        raise ValueError(
            f"benchmark: got batch {batch}, {rounds} rounds and {warmup} to warm up, expected at least 1, 1 and 0"
        )
    spec = _sized(model.preprocessing, size)
    seconds = np.zeros((warmup + rounds, 3))
    shape = (0, 0)
    for turn in range(warmup + rounds):
        chosen = [images[(turn * batch + i) % len(images)] for i in range(batch)]
        marks = [time.perf_counter()]
        prepared = preprocess(chosen, spec)
        marks.append(time.perf_counter())
        scored = model.predict_batch(prepared)
        marks.append(time.perf_counter())
        for row in range(batch):
            height, width = prepared.original_sizes[row].tolist()
            to_detections(scored, row, (height, width), class_names=model.class_names, threshold=0.5)
        marks.append(time.perf_counter())
        seconds[turn] = np.diff(marks)
        shape = (prepared.images.shape[2], prepared.images.shape[3])
        if progress is not None:
            progress(turn + 1, warmup + rounds)
    counted = seconds[warmup:] * 1000
    parts = np.percentile(counted, (50, 95), axis=0)  # [2, 3]
    total = np.percentile(counted.sum(1), (50, 95))
    after = memory_mib()
    return Measurement(
        model=name,
        runtime=runtime,
        threads=threads,
        batch=batch,
        height=shape[0],
        width=shape[1],
        rounds=rounds,
        pre_p50=float(parts[0, 0]),
        pre_p95=float(parts[1, 0]),
        model_p50=float(parts[0, 1]),
        model_p95=float(parts[1, 1]),
        post_p50=float(parts[0, 2]),
        post_p95=float(parts[1, 2]),
        total_p50=float(total[0]),
        total_p95=float(total[1]),
        images_per_second=float(1000 * batch / total[0]),
        memory_mib=None if memory_before is None or after is None else max(0.0, after - memory_before),
    )


def with_ap(measurements: Sequence[Measurement], ap: float) -> list[Measurement]:
    """The same measurements with the AP of their model."""
    return [replace(one, ap=ap) for one in measurements]


def write_csv(path: Path, measurements: Sequence[Measurement]) -> None:
    """Write one row per measurement, under the names of `Measurement`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[field.name for field in fields(Measurement)])
    writer.writeheader()
    writer.writerows({key: csv_cell(value) for key, value in asdict(one).items()} for one in measurements)
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))


def write_plot(path: Path, measurements: Sequence[Measurement]) -> None:
    """Write an SVG: time per image against AP if that was measured, else one bar per measurement."""
    figure = _scatter(measurements) if any(one.ap is not None for one in measurements) else _bars(measurements)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", bbox_inches="tight")
    atomic_write(path, lambda file: file.write(drawn.getvalue()))


def _scatter(measurements: Sequence[Measurement]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for label in dict.fromkeys(_label(one) for one in measurements):
        points = [one for one in measurements if _label(one) == label and one.ap is not None]
        axes.plot([one.total_p50 / one.batch for one in points], [one.ap or 0.0 for one in points], "o", label=label)
    axes.set(xlabel="milliseconds an image (median)", ylabel="AP", xlim=(0, None))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def _bars(measurements: Sequence[Measurement]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.45 * len(measurements)))
    axes = figure.subplots()
    names = [f"{_label(one)}, {one.batch} × {one.height}×{one.width}" for one in measurements]
    left = np.zeros(len(measurements))
    for part in ("pre", "model", "post"):
        times = np.array([getattr(one, f"{part}_p50") / one.batch for one in measurements])
        axes.barh(names, times, left=left, label=part)
        left += times
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds an image (median)")
    axes.legend(fontsize=8)
    return figure


def _label(one: Measurement) -> str:
    return f"{one.model} ({one.runtime})"


def _sized(own: PreprocessingSpec, size: int | Size | None) -> PreprocessingSpec:
    if size is None:
        return own
    if own.mode == "letterbox":
        sides = (size, size) if isinstance(size, int) else size
        return PreprocessingSpec(mode="letterbox", size=sides, mean=own.mean, std=own.std)
    return PreprocessingSpec.from_size(size).model_copy(update={"mean": own.mean, "std": own.std})
