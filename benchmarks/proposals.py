"""Region proposals: images per second of one core, recall, and scaling over processes.

    python benchmarks/proposals.py [DATA] [--split val]

Images are decoded beforehand; the second column adds reading, hashing and decoding the files. Speed is of CPU time, so
that other programs on the machine count as little as they can (they still share caches and memory); the wall-clock
scaling over one and two processes needs an idle machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import cv2
from PIL import Image

from siamdetr.data.index import DetectionIndex
from siamdetr.data.readers.recognise import open_dataset
from siamdetr.images.open import open_untrusted
from siamdetr.proposals.compute import compute_proposals
from siamdetr.proposals.methods import METHODS, Method, Recipe, propose
from siamdetr.proposals.recall import proposal_recall
from siamdetr.system.parallel import TaskRunner

SCALED: Method = "merged"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="?", default="../shared/data/coco-mini")
    parser.add_argument("--split", default="val")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    index = open_dataset(arguments.data, split=arguments.split)
    started = time.process_time()
    images = [open_untrusted(index.path(i)).copy() for i in range(len(index))]
    decoding = time.process_time() - started
    sides = sum(max(image.size) for image in images) / len(images)
    print(f"{len(index)} images, {(~index.crowd).sum()} boxes, longer side {sides:.0f} px on average")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, one thread")
    print(f"{'method':17} {'images/s':>8} {'+ decode':>8} {'AR@10':>6} {'AR@30':>6} {'AR@100':>6} {'R50@100':>7}")
    with tempfile.TemporaryDirectory() as scratch:
        for method in METHODS:
            if method != "objectness-file":
                print(row(index, images, method, Path(scratch), decoding), flush=True)
        scaling(index, Path(scratch))


def row(index: DetectionIndex, images: list[Image.Image], method: Method, scratch: Path, decoding: float) -> str:
    """A line of the table."""
    recipe = Recipe(method)
    started = time.process_time()
    for image in images:
        propose(image, recipe)
    seconds = time.process_time() - started
    recall = proposal_recall(index, compute_proposals(index, scratch / f"{method}.arrow", recipe=recipe))
    speed = f"{len(images) / seconds:8.1f} {len(images) / (seconds + decoding):8.1f}"
    figures = " ".join(f"{recall.average[count]:6.3f}" for count in (10, 30, 100))
    return f"{method:17} {speed} {figures} {recall.at_50[100]:7.3f}"


def scaling(index: DetectionIndex, scratch: Path) -> None:
    """Wall-clock images a second over one and two processes, their start included."""
    rates = []
    for workers in (1, 2):
        started = time.perf_counter()
        compute_proposals(
            index,
            scratch / f"{workers}.arrow",
            recipe=Recipe(SCALED),
            engine=TaskRunner("processes", workers),
        )
        rates.append(len(index) / (time.perf_counter() - started))
    print(
        f"{SCALED}, processes: 1: {rates[0]:.1f} images/s, 2: {rates[1]:.1f} images/s, ratio {rates[1] / rates[0]:.2f}; "
        f"load at the end {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
