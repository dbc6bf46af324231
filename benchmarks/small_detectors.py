"""The small presets, finetuned with one budget: accuracy over seeds, time a step and an image.

Every detector gets the same images, steps, batch and augmentation, from a random start with a pretrained backbone.
AP and AP50 are those of the test part; steps and images are timed after the trainings, the detectors taking turns.

python benchmarks/small_detectors.py ../shared/data/bccd ../shared/data/cards --seeds 0 1 2 -o runs/detectors
"""

from __future__ import annotations

import argparse
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from detectors import Measured, make_example, measured_detector, medians

from siamdetr.api import SiamDETR
from siamdetr.data.readers.recognise import open_dataset
from siamdetr.evaluation.coco import evaluate
from siamdetr.models.detector import Detector
from siamdetr.presets import preset_values
from siamdetr.settings.resolve import resolve
from siamdetr.settings.training import FinetuneSettings
from siamdetr.system.atomic_file import atomic_text
from siamdetr.training.finetune import finetune

PRESETS = ("small", "small-dn-deformable", "small-dino", "small-rtdetr")
TURNS = 8


@dataclass(frozen=True)
class Accuracy:
    """Test scores of one trained detector, per cent."""

    ap: float
    ap50: float


def main() -> None:
    """Train what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--test", default="test", help="the part that is scored")
    parser.add_argument("--imgsz", type=int, default=192, help="side of the images; RT-DETR takes squares of it")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of the finetuning")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    lines = []
    for data in options.data:
        lines += [f"{data.name}, {options.steps} steps, {options.imgsz} pixels, seeds {options.seeds}:", ""]
        lines += ["| detector | AP | AP50 |", "|---|---|---|"]
        for preset in options.presets:
            lines.append(accuracy_row(options, data, preset))
            print(lines[-1], flush=True)
        lines.append("")
    lines += time_rows(options)
    atomic_text(options.output / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def accuracy_row(options: argparse.Namespace, data: Path, preset: str) -> str:
    """Mean and standard deviation over seeds."""
    found = [accuracy(options, data, preset, seed) for seed in options.seeds]
    return f"| {preset} | {spread([one.ap for one in found])} | {spread([one.ap50 for one in found])} |"


def spread(values: list[float]) -> str:
    """`mean ± standard deviation`, with one seed the value alone."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def accuracy(options: argparse.Namespace, data: Path, preset: str, seed: int) -> Accuracy:
    """Train where no finished run is there, and score on the test part."""
    settings = settings_of(options, data, preset, seed)
    model = SiamDETR.load(finetune(settings, resume="auto").model)
    scores = evaluate(model, open_dataset(data, split=options.test))
    return Accuracy(100 * scores.ap, 100 * scores.ap50)


def settings_of(options: argparse.Namespace, data: Path, preset: str, seed: int) -> FinetuneSettings:
    """The preset with the common budget."""
    square = isinstance(preset_values(preset, stage="finetune")["images"]["size"], tuple)
    flags = {
        "data.paths": [str(data)],
        "images.size": (options.imgsz, options.imgsz) if square else options.imgsz,
        "images.max_size": None if square else round(options.imgsz * 5 / 3),
        "steps": options.steps,
        "seed": seed,
        "workers": 0,
        "val_every": 1_000,  # once, at the end
        "output": str(options.output / data.name / f"{preset}-{seed}"),
    }
    return resolve(FinetuneSettings, preset=preset, flags=flags, assignments=options.set)


def time_rows(options: argparse.Namespace) -> list[str]:
    """Medians of a training step without data loading and of an inference, on squares of one size."""
    found: dict[str, Measured] = {}
    for preset in options.presets:
        run = settings_of(options, options.data[0], preset, 0)
        example = make_example(run.batch_size, options.imgsz, torch.device("cpu"))
        found[preset] = measured_detector(Detector(run.detector), run.losses, run.denoising, example)
    step = dict(zip(found, medians([one.step for one in found.values()], TURNS), strict=True))
    inference = dict(zip(found, medians([one.inference for one in found.values()], TURNS), strict=True))
    return [
        f"Timed on {options.imgsz} pixels, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, "
        f"medians of {TURNS} turns:",
        "",
        "| detector | step, s | inference of an image, ms | parameters that learn, millions | GFLOPs of an image |",
        "|---|---|---|---|---|",
        *(
            f"| {preset} | {step[preset]:.3f} | {1e3 * inference[preset]:.1f} | {one.learning:.1f} | {one.gflops:.1f} |"
            for preset, one in found.items()
        ),
    ]


if __name__ == "__main__":
    main()
