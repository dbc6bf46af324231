"""Cost and load of the server, in one run on the loopback interface with bounded count and time.

    python benchmarks/serve.py [--model BUNDLE] [--requests 60] [--seconds 10] [--threads 1] [--size 640]

Without --model: a small Conditional DETR (ResNet-18) with random weights, exported for the purpose.
Three parts are measured:
  1. the median of one request after the other, beside bare decoding and session.run in this process, in turns of five
     (a connection that rests between two requests would hide what back-to-back requests wait for);
  2. requests per second and latencies at 1, 8 and 32 clients, for 1 and 2 workers, with and without micro-batching;
  3. answers per second under four times the load that the server can answer, beside the best of part 2, and the speed
     of rejects.
"""

from __future__ import annotations

import argparse
import http.client
import io
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from siamdetr.export.gate.images import drawn_images
from siamdetr.export.runtime import OnnxDetector
from siamdetr.images.preprocessing import PreprocessingSpec, preprocess

CLIENTS = (1, 8, 32)
HEADERS = {"Content-Type": "multipart/form-data; boundary=boundary"}


@dataclass
class Load:
    """The results of some clients."""

    seconds: float = 0.0
    accepted: list[float] = field(default_factory=list)  # seconds of each
    rejected: list[float] = field(default_factory=list)
    failed: int = 0

    def text(self) -> str:
        """One line."""
        rate = len(self.accepted) / self.seconds
        p50, p95, p99 = np.percentile(self.accepted, (50, 95, 99)) * 1000 if self.accepted else (np.nan,) * 3
        return f"{rate:7.1f} /s   p50 {p50:7.1f}  p95 {p95:7.1f}  p99 {p99:7.1f} ms   failed {self.failed}"


@contextmanager
def server(bundle: Path, *arguments: object) -> Iterator[tuple[int, str]]:
    """`siamdetr serve` as a process: its id and its address."""
    command = [sys.executable, "-m", "siamdetr.cli", "serve", bundle, "--port", "0", *arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        found = re.search(r"http://[0-9.:]+", process.stdout.readline())
        assert found
        threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would stop the server
        until = time.monotonic() + 60
        while not ready(found[0]) and time.monotonic() < until:
            time.sleep(0.05)
        yield process.pid, found[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def connection(url: str) -> http.client.HTTPConnection:
    """A connection that is kept."""
    parts = urllib.parse.urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)


def ready(url: str) -> bool:
    """Whether the server takes requests."""
    try:
        opened = connection(url)
        opened.request("GET", "/v2/health/ready")
        return opened.getresponse().status == 200
    except OSError:
        return False


def load(url: str, body: bytes, *, clients: int, requests: int, seconds: float, pause: float = 0.0) -> Load:
    """Clients that send a request as soon as the last is answered; after a reject they pause."""
    found, lock = Load(), threading.Lock()
    left = [requests]
    end = time.perf_counter() + seconds

    def client() -> None:
        opened = connection(url)
        while time.perf_counter() < end:
            with lock:
                if left[0] <= 0:
                    break
                left[0] -= 1
            started = time.perf_counter()
            try:
                opened.request("POST", "/v1/detect", body, HEADERS)
                answer = opened.getresponse()
                answer.read()
                status = answer.status
            except OSError:
                opened.close()
                status = 0
            taken = time.perf_counter() - started
            with lock:
                if status == 200:
                    found.accepted.append(taken)
                elif status in (429, 503):
                    found.rejected.append(taken)
                else:
                    found.failed += 1
            if status in (429, 503):
                time.sleep(pause)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.seconds = time.perf_counter() - started
    return found


def megabytes(process: int) -> list[int]:
    """Resident memory of a process and its children.

    Supervisors and trackers are left out where there are workers.
    """
    children = [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    sizes = [int(Path(f"/proc/{one}/statm").read_text().split()[1]) * 4096 // 10**6 for one in children]
    workers = [size for size in sizes if size > 50]
    return workers or [int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096 // 10**6]


def overhead(bundle: Path, picture: bytes, body: bytes, *, threads: int, requests: int) -> None:
    """Measure part 1."""
    model = OnnxDetector(bundle, threads=threads)
    bare: list[float] = []
    served: list[float] = []
    with server(bundle, "--threads", threads) as (_, url):
        opened = connection(url)
        for turn in range(2 * (requests // 5 + 1)):
            for _ in range(5):
                started = time.perf_counter()
                if turn % 2 == 0:
                    model.predict_batch(preprocess([Image.open(io.BytesIO(picture))], model.preprocessing))
                else:
                    opened.request("POST", "/v1/detect", body, HEADERS)
                    opened.getresponse().read()
                (bare, served)[turn % 2].append(time.perf_counter() - started)
    bare_ms, served_ms = (statistics.median(times[5:]) * 1000 for times in (bare, served))
    print(f"bare decode + session.run {bare_ms:.1f} ms, served {served_ms:.1f} ms: {served_ms - bare_ms:+.1f} ms (p50)")


def throughput(bundle: Path, body: bytes, *, threads: int, requests: int, seconds: float) -> float:
    """Measure part 2; returns the best rate of one worker without batching."""
    best = 0.0
    model_mb = (bundle / "model.onnx").stat().st_size / 1e6
    for workers in (1, 2):
        for batch in (1, 8):
            with server(bundle, "--threads", threads, "--workers", workers, "--max-batch", batch) as (process, url):
                for clients in CLIENTS:
                    found = load(url, body, clients=clients, requests=requests * clients, seconds=seconds)
                    print(f"workers {workers}  batch {batch}  clients {clients:2}   {found.text()}")
                    if workers == batch == 1:
                        best = max(best, len(found.accepted) / found.seconds)
                sizes = ", ".join(map(str, megabytes(process)))
                print(f"    memory {sizes} MB a worker; the model file {model_mb:.0f} MB")
    return best


def overload(bundle: Path, body: bytes, best: float, *, threads: int, seconds: float) -> None:
    """Measure part 3."""
    queue = 16
    pause = queue / best  # the 3 * queue clients that find no room then ask 3 times as often as the server can answer
    with server(bundle, "--threads", threads, "--queue", queue) as (_, url):
        found = load(url, body, clients=4 * queue, requests=10**9, seconds=seconds, pause=pause)
    rate = len(found.accepted) / found.seconds
    rejects = np.percentile(found.rejected, (50, 99)) * 1000 if found.rejected else (np.nan, np.nan)
    print(f"queue {queue}, clients {4 * queue}: {found.text()}")
    print(
        f"    {rate / best:.0%} of the best rate; {len(found.rejected)} rejects, p50 {rejects[0]:.1f} ms, p99 {rejects[1]:.1f} ms"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--requests", type=int, default=60, help="of one client")
    parser.add_argument("--seconds", type=float, default=10, help="of one measurement, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=640)
    given = parser.parse_args()
    buffer = io.BytesIO()
    smooth = Image.fromarray(drawn_images(1, 480, 640)[0].transpose(1, 2, 0))
    smooth.save(buffer, "JPEG", quality=90)
    picture = buffer.getvalue()
    name = b'Content-Disposition: form-data; name="images"; filename="a.jpg"'
    body = b"--boundary\r\n" + name + b"\r\n\r\n" + picture + b"\r\n--boundary--\r\n"
    with tempfile.TemporaryDirectory() as folder:
        bundle = given.model or export(Path(folder), given.size)
        print(
            f"{len(picture) // 1000} KB JPEG of 640 × 480, {given.threads} threads a model call, load {os.getloadavg()[0]:.1f}"
        )
        overhead(bundle, picture, body, threads=given.threads, requests=given.requests)
        best = throughput(bundle, body, threads=given.threads, requests=given.requests, seconds=given.seconds)
        overload(bundle, body, best, threads=given.threads, seconds=given.seconds)


def export(folder: Path, size: int) -> Path:
    """The bundle of a small detector with random weights."""
    from siamdetr import SiamDETR
    from siamdetr.export.onnx import export_onnx

    spec = PreprocessingSpec.from_size((size, size))
    model = SiamDETR("conditional", backbone="resnet18", num_classes=4, num_queries=60, preprocessing=spec)
    return export_onnx(model, folder).folder


if __name__ == "__main__":
    main()
