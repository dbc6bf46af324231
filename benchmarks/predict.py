"""Seconds an image: PyTorch beside ONNX Runtime, in one run, the two taking turns.

    python benchmarks/predict.py [--variant conditional] [--backbone resnet50] [--size 640] [--batch 1] [--rounds 7] [--threads 2]

Random weights (time does not depend on them). "plain" is the module as it trains; "predict" is what `SiamDETR.predict` runs: batch
norms folded, channels last; "ONNX" is the exported file. All on the CPU, from prepared pixels to scored boxes; then, for one
picture, all of `predict` from a PIL image of that size on.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from siamdetr import SiamDETR
from siamdetr.evaluation.pytorch import normalize_prepared
from siamdetr.export.onnx import export_onnx
from siamdetr.export.parity import example_images
from siamdetr.export.runtime import OnnxDetector
from siamdetr.preprocessing import Prepared, PreprocessingSpec


def take_turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="conditional", choices=("vanilla", "conditional"))
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    spec = PreprocessingSpec.from_size((given.size, given.size))
    model = SiamDETR(given.variant, backbone=given.backbone, num_classes=80, preprocessing=spec)
    with tempfile.TemporaryDirectory() as folder:
        result = export_onnx(model, Path(folder))
        exported = OnnxDetector(folder, threads=given.threads)
    pixels = example_images(given.batch, given.size, given.size)
    sizes = np.full((given.batch, 2), given.size, dtype=np.int64)
    batch = Prepared(pixels, None, sizes, sizes)
    picture = Image.fromarray(pixels[0].transpose(1, 2, 0))

    def plain() -> object:
        with torch.inference_mode():
            return model.detector(*normalize_prepared(batch, spec, "cpu"))

    print(
        f"{given.variant} {given.backbone}, batch {given.batch} of {given.size}×{given.size}, {given.threads} threads. "
        f"Export: {result.seconds:.0f} s, {result.num_nodes} nodes, {result.num_bytes / 1e6:.0f} MB, "
        f"largest difference {result.parity.largest_error:.1e}"
    )
    model_only: dict[str, Callable[[], object]] = {
        "PyTorch, plain": plain,
        "PyTorch, predict": lambda: model.predict_batch(batch),
        "ONNX Runtime": lambda: exported.predict_batch(batch),
    }
    one_picture: dict[str, Callable[[], object]] = {
        "PyTorch, predict(picture)": lambda: model.predict(picture),
        "ONNX Runtime, predict(picture)": lambda: exported.predict(picture),
    }
    for ways in (model_only, one_picture):
        medians = take_turns(ways, given.rounds)
        first = next(iter(medians.values()))
        for name, seconds in medians.items():
            print(f"  {name:32} {seconds * 1000:8.1f} ms   ×{seconds / first:.2f}")


if __name__ == "__main__":
    main()
