"""Memory of the index of a large data set: one process, and worker processes that share it.

    python benchmarks/index_memory.py [--images 1300000] [--boxes 8] [--workers 4]

Side by side: the index in arrays, and the same data as a list of Python objects (measured at a fiftieth, scaled), each
held by one process and then walked through by forked workers. Linux only: the figures come from /proc.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

from siamdetr.data.builder import IndexBuilder
from siamdetr.data.index import DetectionIndex
from siamdetr.data.problems import ProblemLog

MEGABYTE = 1e6
SCALE = 50
LIMIT_MEGABYTES = 1000


def memory(field: str, file: str = "/proc/self/smaps_rollup") -> float:
    """Megabytes that the kernel reports for this process under `field`, such as Rss or Private_Dirty."""
    with open(file, encoding="ascii") as stream:
        return sum(int(line.split()[1]) * 1024 for line in stream if line.startswith(field)) / MEGABYTE


def simulate_index(images: int, boxes: int) -> DetectionIndex:
    """An index as a reader builds it: image by image, box by box."""
    builder = IndexBuilder(Path("/data"), ProblemLog())
    corners = np.random.default_rng(0).integers(0, 300, (1000, 4)).astype(float)
    corners[:, 2:] += corners[:, :2] + 1
    rows = [tuple(row) for row in corners.tolist()]
    for i in range(images):
        builder.add_image(f"train/n{i % 1000:08d}/n{i % 1000:08d}_{i:08d}.JPEG", image_id=i, height=640, width=640)
        for k in range(boxes):
            builder.add_box(i, k, rows[(i * boxes + k) % 1000], reference=i)
    names = tuple(f"class {label}" for label in range(max(1, boxes)))
    return builder.build(names, tuple(range(len(names))), lambda image, reference: ("", ""))


def simulate_objects(images: int, boxes: int) -> list[dict[str, object]]:
    """The same data as a list of dictionaries, as in most data sets."""
    return [
        {
            "path": f"/data/train/n{i % 1000:08d}/n{i % 1000:08d}_{i:08d}.JPEG",
            "id": i,
            "size": (640, 640),
            "boxes": [[float(i), float(k), float(i + 1), float(k + 1)] for k in range(boxes)],
            "labels": list(range(boxes)),
        }
        for i in range(images)
    ]


def walk(touch: Callable[[int], object], count: int, barrier: Barrier, answer: Connection) -> None:
    """Read every entry, as a worker does in an epoch; returns its private and its proportional memory."""
    before = memory("Private")
    for i in range(count):
        touch(i)
    barrier.wait()  # all workers are alive while the pages are counted
    answer.send((memory("Private") - before, memory("Pss")))
    barrier.wait()


def in_workers(touch: Callable[[int], object], count: int, workers: int) -> tuple[float, float]:
    """Mean growth of private memory and mean proportional share of forked workers, in megabytes."""
    context = get_context("fork")
    barrier = context.Barrier(workers)
    pipes = [context.Pipe(duplex=False) for _ in range(workers)]
    processes = [context.Process(target=walk, args=(touch, count, barrier, send)) for _, send in pipes]
    for process in processes:
        process.start()
    figures = np.array([receive.recv() for receive, _ in pipes])
    for process in processes:
        process.join()
    return float(figures[:, 0].mean()), float(figures[:, 1].mean())


def measure_arrays(images: int, boxes: int, workers: int) -> tuple[float, float]:
    """Build, share and drop the index, and print its figures; returns (process, index) megabytes."""
    bare = memory("Rss")
    start = time.perf_counter()
    index = simulate_index(images, boxes)
    seconds = time.perf_counter() - start
    held, peak = memory("Rss"), memory("VmHWM", "/proc/self/status")
    growth, share = in_workers(lambda i: (index.path(i), index.boxes_of(i), index.labels_of(i)), len(index), workers)
    print(
        f"arrays:  {index.nbytes / MEGABYTE:6.0f} MB in {seconds:.0f} s; process {held:.0f} MB, while building {peak:.0f} MB"
    )
    print(f"         each worker, having read every entry: {growth:+.0f} MB private, {share:.0f} MB proportional share")
    return held, held - bare


def measure_objects(images: int, boxes: int, workers: int) -> float:
    """The same for Python objects, at 1/SCALE of the images; megabytes at full scale."""
    gc.collect()
    bare = memory("Rss")
    objects = simulate_objects(images // SCALE, boxes)
    held = SCALE * (memory("Rss") - bare)
    growth = SCALE * in_workers(lambda i: list(objects[i].values()), len(objects), workers)[0]
    print(f"objects: {held:6.0f} MB, and each worker {growth:+.0f} MB private (measured at 1/{SCALE}, scaled)")
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_300_000)
    parser.add_argument("--boxes", type=int, default=8, help="per image")
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    print(
        f"{options.images:,} images with {options.boxes} boxes each, {options.workers} forked workers, {os.cpu_count()} cores"
    )
    listed = measure_objects(options.images, options.boxes, options.workers)
    held, grown = measure_arrays(options.images, options.boxes, options.workers)
    print(f"ratio:   {listed / grown:.1f} x less memory in arrays")
    verdict = "below" if held < LIMIT_MEGABYTES else "NOT below"
    print(f"process memory {held:.0f} MB is {verdict} the limit of {LIMIT_MEGABYTES} MB")


if __name__ == "__main__":
    main()
