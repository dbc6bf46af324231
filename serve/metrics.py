"""The metrics of a server, for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from siamdetr.system.processes import lives

# prometheus_client's own: processes share their figures in that folder.
MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The metrics of one server, over all its processes."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "siamdetr_requests", "Requests answered", ["endpoint", "status"], registry=self._registry
        )
        self.request_seconds = Histogram(
            "siamdetr_request_seconds", "From the head of a request to the end of its answer", ["endpoint"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._stages = Histogram(
            "siamdetr_stage_seconds", "Of one image: decode, queue, post; of one model call: model", ["stage"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.batch_size = Histogram(
            "siamdetr_batch_size", "Images of one model call", buckets=(1, 2, 4, 8, 16, 32), registry=self._registry
        )
        self.rejected = Counter(
            "siamdetr_rejected", "Requests refused for load or time", ["reason"], registry=self._registry
        )
        self.in_flight = Gauge(
            "siamdetr_images_in_flight", "Images admitted and not yet answered", registry=self._registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        _forget_dead_processes()

    def stage(self, name: str, seconds: float) -> None:
        """Count the time of a stage."""
        self._stages.labels(name).observe(seconds)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time of the block as a stage."""
        started = perf_counter()
        yield
        self.stage(stage, perf_counter() - started)

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        if MULTIPROCESS_VARIABLE not in os.environ:
            return generate_latest(self._registry)
        everyone = CollectorRegistry()
        multiprocess.MultiProcessCollector(everyone)  # type: ignore[no-untyped-call]
        return generate_latest(everyone)


def _forget_dead_processes() -> None:
    """Remove the gauges of crashed processes, which would otherwise stay forever."""
    folder = os.environ.get(MULTIPROCESS_VARIABLE)
    for file in Path(folder).glob("gauge_live*_*.db") if folder else ():
        process = int(file.stem.rpartition("_")[2])
        if not lives(process):
            multiprocess.mark_process_dead(process, folder)  # type: ignore[no-untyped-call]
