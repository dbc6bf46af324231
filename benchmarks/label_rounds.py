"""Labelling in rounds: images of `siamdetr label --next` against random images, by AP per round.

The labels of a data set stand for the person who labels. Both ways begin with the same images, and every round trains
anew from the same start on all images labelled so far.

python benchmarks/label_rounds.py ../shared/data/cards --seeds 0 1 2 -o runs/rounds
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from siamdetr.api import SiamDETR
from siamdetr.data.coco_writer import coco_document
from siamdetr.data.index import DetectionIndex
from siamdetr.data.readers.recognise import open_dataset
from siamdetr.evaluation.coco import evaluate
from siamdetr.labelling.bands import Bands
from siamdetr.labelling.next_images import next_images
from siamdetr.labelling.prelabels import Prelabel, prelabel
from siamdetr.settings.resolve import resolve
from siamdetr.settings.training import FinetuneSettings
from siamdetr.system.atomic_file import atomic_text
from siamdetr.training.finetune import finetune

WAYS = ("random", "chosen")


def main() -> None:
    """Run all rounds and print a table: AP and AP50 on the test part, mean and spread over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--test", default="test", help="the part that is scored")
    parser.add_argument("--first", type=int, default=20, help="images of the first round, drawn at random")
    parser.add_argument("--each", type=int, default=20, help="images of every further round")
    parser.add_argument("--rounds", type=int, default=3, help="after the first")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--init", help="a pretrained run to start from")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--imgsz", type=int, default=192)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of the finetuning")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    rows: list[dict[str, float | str]] = []
    for seed in options.seeds:
        for way in WAYS:
            rows += rounds(options, way, seed)
            write(options.output / "rounds.csv", rows)
    show(rows)


def rounds(options: argparse.Namespace, way: str, seed: int) -> list[dict[str, float | str]]:
    """The rounds of one way of choosing."""
    train, test = open_dataset(options.data, split="train"), open_dataset(options.data, split=options.test)
    order = np.random.default_rng(seed).permutation(len(train))
    labelled, rows = order[: options.first], []
    for number in range(options.rounds + 1):
        # The first round is the same for both ways, and is trained once.
        folder = options.output / f"seed{seed}" / ("first" if number == 0 else f"{way}-{number}")
        model = trained(options, train, labelled, folder, seed)
        scores = evaluate(model, test)
        rows.append({"seed": seed, "way": way, "labels": len(labelled), "ap": scores.ap, "ap50": scores.ap50})
        print(f"seed {seed}, {way}, {len(labelled)} labels: AP {scores.ap:.3f}, AP50 {scores.ap50:.3f}", flush=True)
        if number < options.rounds:
            rest = order[~np.isin(order, labelled)]
            more = rest[: options.each] if way == "random" else chosen(model, train, labelled, rest, options.each)
            labelled = np.concatenate([labelled, more])
    return rows


def trained(
    options: argparse.Namespace, train: DetectionIndex, labelled: NDArray[np.int64], folder: Path, seed: int
) -> SiamDETR:
    """A detector of the labelled images, from the run in `folder` where it is finished."""
    data = folder / "data"
    document = json.dumps(coco_document(train, labelled.tolist(), base=data))
    (data / "annotations").mkdir(parents=True, exist_ok=True)
    atomic_text(data / "annotations" / "instances_train.json", document)
    flags = {
        "data.paths": [str(data)],
        "init": options.init,
        "images.size": options.imgsz,
        "images.max_size": round(options.imgsz * 5 / 3),
        "steps": options.steps,
        "seed": seed,
        "workers": 0,
        "output": str(folder / "run"),
    }
    settings = resolve(FinetuneSettings, preset=options.preset, flags=flags, assignments=options.set)
    return SiamDETR.load(finetune(settings, resume="auto").model)


def chosen(
    model: SiamDETR, train: DetectionIndex, labelled: NDArray[np.int64], rest: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """The images that `siamdetr label --next` would give a person next."""
    files = [train.path(i) for i in rest]
    found = [one for one in prelabel(model.predictor, files, Bands()) if isinstance(one, Prelabel)]
    best = next_images(model.predictor, found, count, labelled=[train.path(i) for i in labelled])
    positions = dict(zip(files, rest, strict=True))
    return np.array([positions[one.source] for one in best], dtype=np.int64)


def write(path: Path, rows: list[dict[str, float | str]]) -> None:
    """The table, as far as it goes."""
    lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
    atomic_text(path, "\n".join(lines) + "\n")


def show(rows: list[dict[str, float | str]]) -> None:
    """Mean and standard deviation over seeds of each round."""
    print(f"{'labels':>8}" + "".join(f"{way + ' AP':>18}{way + ' AP50':>18}" for way in WAYS))
    for labels in sorted({row["labels"] for row in rows}, key=float):
        line = f"{labels:>8}"
        for way in WAYS:
            for metric in ("ap", "ap50"):
                found = [100 * float(row[metric]) for row in rows if row["labels"] == labels and row["way"] == way]
                spread = statistics.stdev(found) if len(found) > 1 else 0.0
                line += f"{statistics.mean(found):>11.1f} ± {spread:4.1f}"
        print(line)


if __name__ == "__main__":
    main()
