"""CPU seconds and peak memory of all that begins with reading a data set of COCO's size.

    python benchmarks/reading.py [--images 118000] [--boxes 8] [--repeat 3] [--folder .]

A COCO file with small JPEGs, which stay in the folder for the next run. Each row is a process of its own, so that the
peak is its own: reading with every file's header, reading with the headers of before, the doctor, and a training of
four steps from its start to its report. CPU seconds are user and system time of all threads.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (160, 120)  # pixels, width and height of an image
PAINTED = (20, 15)  # random colours, from which an image is enlarged: no two look alike
VAL_IMAGES = 16
CLASSES = 80
TRAINING = "--preset quickstart --steps 4 --batch-size 2 --workers 0 --set val_every=4"


def write_data(root: Path, images: int, boxes: int) -> None:
    """A COCO data set in which every image has its own content and `boxes` boxes."""
    rng = np.random.default_rng(0)
    corners = np.round(rng.uniform(0, 58, (images * boxes, 4)) + np.array([0, 0, 2, 2]), 2).tolist()
    for split, first, last in (("train2017", 0, images), ("val2017", images, images + VAL_IMAGES)):
        (root / split).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda i, folder=root / split: paint(folder / f"{i:012d}.jpg", i), range(first, last)))
        document = {
            "images": [
                {"id": i, "file_name": f"{i:012d}.jpg", "width": SIZE[0], "height": SIZE[1]} for i in range(first, last)
            ],
            "annotations": [
                {
                    "id": i * boxes + k,
                    "image_id": i,
                    "category_id": 1 + (i + k) % CLASSES,
                    "bbox": (box := corners[(i * boxes + k) % len(corners)]),
                    "area": round(box[2] * box[3], 3),
                    "iscrowd": 0,
                }
                for i in range(first, last)
                for k in range(boxes)
            ],
            "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(CLASSES)],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))


def paint(file: Path, seed: int) -> None:
    """A JPEG of random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (PAINTED[1], PAINTED[0], 3), dtype=np.uint8)
    Image.fromarray(colours).resize(SIZE, Image.Resampling.BILINEAR).save(file, quality=80)


def commands(root: Path, scratch: Path) -> dict[str, list[str]]:
    """The command of each row, in the order of measuring."""
    read = [
        "-c",
        f"from siamdetr.data.readers.recognise import open_dataset; open_dataset({str(root)!r}, split='train')",
    ]
    training = ["--data", str(root), *TRAINING.split(), "-o", str(scratch / "run")]
    return {
        "read, every header": read,
        "read, headers cached": read,
        "doctor": ["-m", "siamdetr.cli", "doctor", str(root)],
        "training, 4 steps": ["-m", "siamdetr.cli", "finetune", *training],
    }


def measure(row: str, command: list[str], scratch: Path) -> None:
    """Run a command in a fresh process; prints its CPU seconds and its peak memory."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(scratch / "cache"), "OMP_NUM_THREADS": "1"}
    with (scratch / "output").open("w+") as output:
        process = subprocess.Popen([sys.executable, *command], env=environment, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            raise SystemExit(f"{row}: exit status {status}\n{(scratch / 'output').read_text()}")
    print(f"{row:21} {usage.ru_utime + usage.ru_stime:6.1f} s {usage.ru_maxrss / 1000:6.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--boxes", type=int, default=8, help="per image")
    parser.add_argument("--repeat", type=int, default=3, help="times that every row is measured")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the data set lies, or is written")
    options = parser.parse_args()
    root = options.folder / f"reading-{options.images}-{options.boxes}"
    if not root.exists():
        write_data(root, options.images, options.boxes)
    print(f"{options.images:,} images with {options.boxes} boxes each, one thread of OpenMP; CPU time and peak memory")
    for _ in range(options.repeat):
        with tempfile.TemporaryDirectory() as scratch:
            for row, command in commands(root, Path(scratch)).items():
                measure(row, command, Path(scratch))


if __name__ == "__main__":
    main()
