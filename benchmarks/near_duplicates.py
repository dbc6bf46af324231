"""Near-duplicates among many images: seconds and memory of reading the files and of comparing them.

    python benchmarks/near_duplicates.py [--images 100000] [--read 2000] [--threads 2]

Files: JPEGs of 640×480, drawn once and read again and again, because only their number matters. Comparison: drawn
scenes, of which a tenth are there twice with noise, a tenth are frames of one film, and one in twenty is plain white.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from siamdetr.data.duplicates import ImageHashes, duplicate_groups, find_duplicates, hash_images
from siamdetr.system.processes import peak_mib

LIMIT_MIB = 950
_COARSE = 6  # a scene is a smooth picture of 6 × 6 random grey levels
_CHUNK = 4096


def enlarge(coarse: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """[N, height, width] of [N, 6, 6], by linear interpolation."""
    rows, columns = (_interpolation(length) for length in (height, width))
    enlarged: NDArray[np.float32] = rows @ coarse @ columns.T
    return enlarged


def _interpolation(length: int) -> NDArray[np.float32]:
    places = np.linspace(0, _COARSE - 1, length, dtype=np.float32)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(_COARSE)))


def draw_hashes(count: int) -> ImageHashes:
    """Hashes and thumbnails of drawn scenes, in chunks."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(128, 60, (count, _COARSE, _COARSE)).astype(np.float32)
    tenth = count // 10
    coarse[tenth : 2 * tenth] = coarse[:tenth]
    coarse[2 * tenth : 3 * tenth] = coarse[0]
    coarse += rng.normal(0, 1, coarse.shape).astype(np.float32)
    coarse[3 * tenth : 3 * tenth + count // 20] = 255
    hashes, thumbnails = np.zeros((count, 8), np.uint8), np.zeros((count, 256), np.uint8)
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        cells = enlarge(coarse[part], 8, 9).clip(0, 255).astype(np.uint8)
        hashes[part] = np.packbits((cells[:, :, 1:] > cells[:, :, :-1]).reshape(len(cells), 64), axis=1)
        thumbnails[part] = enlarge(coarse[part], 16, 16).clip(0, 255).astype(np.uint8).reshape(len(cells), 256)
    return ImageHashes(hashes, thumbnails, np.ones(count, bool))


def write_files(folder: Path, count: int) -> list[Path]:
    """Pictures of 640×480 with some texture."""
    rng = np.random.default_rng(1)
    paths = [folder / f"{i}.jpg" for i in range(count)]
    for path in paths:
        smooth = enlarge(rng.normal(128, 60, (3, _COARSE, _COARSE)).astype(np.float32), 480, 640)
        pixels = (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(path, quality=90)
    return paths


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--read", type=int, default=2_000, help="files to read; the time is scaled to --images")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print(f"{options.images:,} images, {options.threads} threads, load of the machine {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder), 50)
        started = time.perf_counter()
        hash_images((files * (options.read // 50 + 1))[: options.read], threads=options.threads)
        rate = options.read / (time.perf_counter() - started)
    print(
        f"reading:   {rate:.0f} files/s, so {options.images / rate / 60:.1f} min for all (measured on {options.read:,})"
    )
    images = draw_hashes(options.images)
    before = peak_mib()
    started, worked = time.perf_counter(), time.process_time()
    groups = duplicate_groups(find_duplicates(images))
    seconds, processor = time.perf_counter() - started, time.process_time() - worked
    print(
        f"comparing: {seconds:.0f} s ({processor:.0f} s of processor time), {len(groups):,} groups, the largest of "
        f"{max(map(len, groups), default=0):,}; peak memory {before:.0f} MiB before, {peak_mib():.0f} MiB after"
    )
    verdict = "below" if peak_mib() < LIMIT_MIB else "NOT below"
    print(f"peak memory is {verdict} the limit of {LIMIT_MIB} MiB")


if __name__ == "__main__":
    main()
