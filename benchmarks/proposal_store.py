"""The size of a simulated ImageNet of proposals on disk, and the little that looking up images reads.

python benchmarks/proposal_store.py [--images 1300000] [--boxes 100] [--folder .]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from siamdetr.proposals.rows import Rows
from siamdetr.proposals.store import ProposalStore
from siamdetr.proposals.writing import write_store

LOOK_UPS = 2000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1_300_000)
    parser.add_argument("--boxes", type=int, default=100)
    parser.add_argument("--folder", default=None, help="where the file is written meanwhile; a disk, not a RAM disk")
    parser.add_argument("--read", default=None, help="only open and look up: what the benchmark starts afresh")
    arguments = parser.parse_args()
    if arguments.read is not None:
        read(Path(arguments.read), arguments.images)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "proposals.arrow"
        started = time.perf_counter()
        write_store(path, "simulated", simulated(arguments.images, arguments.boxes))
        print(
            f"{arguments.images:,} images, {arguments.boxes} boxes each: {path.stat().st_size / 1e9:.2f} GB, "
            f"written in {time.perf_counter() - started:.0f} s"
        )
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # out of the page cache
        os.close(descriptor)
        subprocess.run([sys.executable, __file__, "--read", str(path), "--images", str(arguments.images)], check=True)


def simulated(images: int, boxes: int) -> Rows:
    """Random keys, sizes and boxes; the key of image i is a function of i."""
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 256, (images, 16), dtype=np.uint8)
    return Rows(
        keys=keys,
        stamps=rng.integers(0, 256, (images, 16), dtype=np.uint8),
        sizes=rng.integers(200, 600, (images, 2), dtype=np.int32),
        fallbacks=np.zeros(images, dtype=np.uint8),
        offsets=np.arange(images + 1, dtype=np.int64) * boxes,
        values=rng.integers(0, 65536, (images * boxes, 4), dtype=np.uint16),
    )


def read(path: Path, images: int) -> None:
    """Open the store and look up images at random; says what that cost this process."""
    keys = np.random.default_rng(0).integers(0, 256, (images, 16), dtype=np.uint8)
    wanted = [keys[i].tobytes() for i in np.random.default_rng(1).integers(0, images, LOOK_UPS)]
    del keys
    before, memory = blocks_read(), resident()
    started = time.perf_counter()
    store = ProposalStore.open(path)
    opened, blocks, grown = time.perf_counter() - started, blocks_read() - before, resident() - memory
    print(f"opened in {opened * 1000:.1f} ms, {blocks / 2048:.2f} MB read from disk, {grown:.1f} MB more memory")
    started = time.perf_counter()
    found = sum(len(boxes) for key in wanted if (boxes := store.fractions(key)) is not None)
    cold = time.perf_counter() - started
    started = time.perf_counter()
    for key in wanted:
        store.fractions(key)
    warm = time.perf_counter() - started
    print(
        f"{LOOK_UPS} look-ups, {found:,} boxes: {cold / LOOK_UPS * 1e6:.0f} µs each at first, {warm / LOOK_UPS * 1e6:.0f} µs again"
    )


def blocks_read() -> int:
    """Blocks of 512 bytes that this process had read from disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_inblock


def resident() -> float:
    """MB of memory that this process occupies now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


if __name__ == "__main__":
    main()
