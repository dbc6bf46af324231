"""Siamese pretraining with cached views against new views: images per second, and the cache's cost.

    python benchmarks/cached_views.py [--data FOLDER] [--images 64] [--size 240] [--pairs 4] [--steps 24] [--batch 8]

The detector is that of the preset `small`. Each way is a process of its own, so that its peak of memory is its own.
Without `--data` pictures are drawn.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from siamdetr.data.synthetic.shapes import write_synthetic
from siamdetr.drawing.html_page import read_metrics
from siamdetr.pretext.run_settings import PretrainSettings
from siamdetr.settings.resolve import resolve
from siamdetr.system.processes import peak_mib
from siamdetr.training.pretrain import pretrain


def main() -> None:
    """Measure both, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder of images; without it pictures are drawn")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=240, help="largest shortest side, pixels")
    parser.add_argument("--pairs", type=int, default=4, help="K")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--place", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as place:
        if options.data is None:
            options.data = str(Path(place) / "drawn" / "unlabelled")
            write_synthetic(
                Path(place) / "drawn", seed=0, num_unlabelled=options.images, num_train=1, num_val=1, size=320
            )
        found = {pairs: in_process(options, pairs, place) for pairs in (0, options.pairs)}
    print(
        f"preset small, {options.images} images of at most {options.size} pixels, batch {options.batch}, {options.steps} steps"
    )
    print(f"{'':26}{'images/s':>10}{'peak MiB':>10}{'run, s':>9}")
    for pairs, row in found.items():
        name = f"cached, K = {pairs}" if pairs else "new views at every read"
        print(f"{name:26}{row['images_per_second']:10.2f}{row['peak_mib']:10.0f}{row['seconds']:9.1f}")
    plain, cached = found[0], found[options.pairs]
    print(f"cached / new: {cached['images_per_second'] / plain['images_per_second']:.2f} x the images a second")
    each = cached["cache_bytes"] / (options.images * options.pairs)
    print(f"cache: {each / 1e3:.0f} kB a pair, {8_000 * each / 1e9:.2f} GB for 1,000 images and K = 8")


def in_process(options: argparse.Namespace, pairs: int, place: str) -> dict[str, float]:
    """Measure one of the two in a process of its own."""
    arguments = [f"--{name}={getattr(options, name)}" for name in ("data", "images", "size", "pairs", "steps", "batch")]
    command = [sys.executable, __file__, *arguments, f"--only={pairs}", f"--place={place}"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if answer.returncode:  # it has said why
        sys.exit(answer.returncode)
    found: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return found


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Median images per second without the first quarter, peak memory, and the size of the cache."""
    place = Path(options.place) / f"runs-{options.only}"
    flags: dict[str, Any] = {
        "data.paths": [options.data],
        "siamese.size": options.size,
        "siamese.cache_views": options.only,
        "steps": options.steps,
        "batch_size": options.batch,
        "workers": 0,
        "log_every": 1,
        "output": str(place / "run"),
    }
    result = pretrain(resolve(PretrainSettings, preset="small", flags=flags))
    rates = [row["images_per_second"] for row in read_metrics(result.folder) if "images_per_second" in row]
    files = list((place / "views").rglob("features.i8"))
    return {
        "images_per_second": median(rates[len(rates) // 4 :]),
        "peak_mib": peak_mib(),
        "seconds": result.seconds,
        "cache_bytes": float(sum(file.stat().st_size for file in files)),
    }


if __name__ == "__main__":
    main()
