"""`label` and `predict` on a folder and on a film: their rate beside the model's alone, and memory.

    python benchmarks/predict_folder.py [--images 5000] [--minutes 10] [--size 320] [--threads 1]

A detector with random weights and JPEGs of 640×480. The model alone gets batches that are in memory already. All ways
take turns in small rounds. One core is left to the threads that decode and draw: with a GPU all of them are. Memory is
that of the process, at a fifth of the way and at its end, with a model of 64 pixels to save time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from siamdetr import SiamDETR
from siamdetr.images.preprocessing import PreprocessingSpec, preprocess
from siamdetr.inference.predict_files import predict_files
from siamdetr.inference.tiles import detect
from siamdetr.inference.video import VideoReader, VideoWriter
from siamdetr.labelling.bands import Bands
from siamdetr.labelling.prelabels import prelabel
from siamdetr.models.detector import Detector
from siamdetr.reports.annotated_video import annotate_video
from siamdetr.reports.prediction_pictures import write_pictures
from siamdetr.settings.detector import DetectorSettings
from siamdetr.system.processes import memory_mib

BATCH = 8
FRAMES_PER_SECOND = 25


def open_model(size: int) -> SiamDETR:
    """Conditional DETR with ResNet-18 and random weights."""
    settings = DetectorSettings(variant="conditional", backbone="resnet18", num_classes=20, num_queries=100)
    names = [f"class_{label}" for label in range(20)]
    spec = PreprocessingSpec.from_size((size, size))
    return SiamDETR.from_parts(Detector(settings).eval(), class_names=names, preprocessing=spec)


def write_files(folder: Path, count: int) -> list[Path]:
    """`count` names of 50 textured JPEGs."""
    rng = np.random.default_rng(0)
    files = [folder / f"{i:06}.jpg" for i in range(count)]
    for i, file in enumerate(files):
        if i < 50:
            coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            coarse.resize((640, 480), Image.Resampling.BICUBIC).save(file, quality=92)
        else:
            os.link(files[i % 50], file)
    return files


def compare_rates(model: SiamDETR, files: list[Path], folder: Path, rounds: int) -> None:
    """Print images per second of each way, in turns; the first round warms up."""
    pictures = {file: folder / "pictures" / file.name for file in files}
    batches = [preprocess(files[i : i + BATCH], model.preprocessing) for i in range(0, len(files), BATCH)]
    scores = np.sort(model.predict_batch(batches[0]).scores, axis=None)
    least = float(scores[-5 * BATCH])  # about five boxes an image, to be drawn
    bands = Bands(sure=1.0, look=least)
    ways: dict[str, Callable[[], object]] = {
        "model alone": lambda: [model.predict_batch(batch) for batch in batches],
        "label": lambda: list(prelabel(model, files, bands, batch_size=BATCH)),
        "predict": lambda: list(write_pictures(predict_files(model, files, threshold=least), pictures)),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            rates[name].append(len(files) / (time.perf_counter() - started))
    for name, measured in rates.items():
        ratios = [mine / alone for mine, alone in zip(measured[1:], rates["model alone"][1:], strict=True)]
        print(
            f"  {name:12} {statistics.median(measured[1:]):6.1f} images/s   ×{statistics.median(ratios):.2f}",
            flush=True,
        )


class MemoryWatch:
    """A progress that notes the memory of the process at a fifth of the way, and prints its growth since."""

    def __init__(self) -> None:
        self.first: tuple[int, float] | None = None

    def __call__(self, done: int, total: int) -> None:
        """Note the memory."""
        if self.first is None and done >= total / 5:
            self.first = done, memory_mib()

    def report(self, what: str, count: int) -> None:
        """Print both figures."""
        assert self.first is not None
        (at, early), late = self.first, memory_mib()
        print(
            f"  {what}: {early:.0f} MiB after {at:,}, {late:.0f} MiB after {count:,} ({late - early:+.1f})", flush=True
        )


def write_film(path: Path, frames: int) -> None:
    """A square that wanders over a textured picture of 320×240."""
    still = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    scene = np.asarray(Image.fromarray(still).resize((320, 240), Image.Resampling.BICUBIC))
    writer = VideoWriter(path, rate=FRAMES_PER_SECOND)
    for i in range(frames):
        pixels = scene.copy()
        x, y = i % 280, i // 3 % 200
        pixels[y : y + 40, x : x + 40] = 255
        writer.write(pixels, i / FRAMES_PER_SECOND)
    writer.close()


def watch_memory(model: SiamDETR, files: list[Path], folder: Path, frames: int) -> None:
    """Print the memory of `label`, of `predict`, and of `predict` on a film."""
    watch = MemoryWatch()
    kept = list(prelabel(model, files, Bands(), progress=watch))
    watch.report("label, images", len(kept))
    watch = MemoryWatch()
    pictures = {file: folder / f"picture{i % 100}.jpg" for i, file in enumerate(files)}
    for done, _ in enumerate(write_pictures(predict_files(model, files), pictures), start=1):
        watch(done, len(files))
    watch.report("predict, images", len(files))
    watch, film = MemoryWatch(), folder / "film.mp4"
    write_film(film, frames)
    with VideoReader(str(film)) as reader:
        annotate_video(
            reader, lambda batch: detect(model, [frame.pixels for frame in batch]), folder / "boxes", progress=watch
        )
    watch.report("predict, frames", frames)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--minutes", type=float, default=10, help="of the film")
    parser.add_argument("--size", type=int, default=320, help="of the model's input, pixels")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 1) - 1), help="of the model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--each", type=int, default=64, help="images of a round")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = open_model(given.size)
    print(f"{given.size} pixels, {given.threads} threads for the model, load of the machine {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_files(folder, max(given.images, given.each))
        compare_rates(model, files[: given.each], folder, given.rounds)
        watch_memory(open_model(64), files, folder, round(given.minutes * 60 * FRAMES_PER_SECOND))


if __name__ == "__main__":
    main()
