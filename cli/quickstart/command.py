"""`siamdetr quickstart`: the whole path on a drawn data set, with a report at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from siamdetr.data.index import DetectionIndex
    from siamdetr.export.onnx import ExportResult
    from siamdetr.training.run_result import RunResult


_CLASSES = ("disc", "square", "triangle", "star")


@dataclass(frozen=True)
class Budget:
    """Sizes of the data and lengths of the runs, with their durations on two CPU cores."""

    num_unlabelled: int
    num_labelled: int
    num_val: int
    pretrain_steps: int
    finetune_steps: int
    batch_size: int
    evaluations: int
    pretrain_time: str
    finetune_time: str


FULL = Budget(
    num_unlabelled=1500,
    num_labelled=80,
    num_val=150,
    pretrain_steps=300,
    finetune_steps=300,
    batch_size=16,
    evaluations=6,
    pretrain_time="about 2 minutes",
    finetune_time="about a minute",
)
FAST = Budget(
    num_unlabelled=24,
    num_labelled=16,
    num_val=8,
    pretrain_steps=4,
    finetune_steps=6,
    batch_size=4,
    evaluations=1,
    pretrain_time="seconds",
    finetune_time="seconds",
)


def quickstart(
    fast: Annotated[bool, typer.Option("--fast", help="The same path in about a minute, without a claim.")] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option("--seed", help="Of the images, the order and the weights.")] = 0,
) -> None:
    """Draw a data set, pretrain, finetune twice, evaluate, export and report."""
    from siamdetr.api import SiamDETR
    from siamdetr.cli.console import bold, console
    from siamdetr.cli.quickstart.report import write_quickstart_report
    from siamdetr.data.readers.recognise import open_dataset
    from siamdetr.evaluation.coco import evaluate

    budget = FAST if fast else FULL
    started = time.perf_counter()
    output = free_folder(output)
    step = _Steps(total=6)
    with step.say("Draw a data set of shapes", "seconds"):
        data = _draw(output / "data", budget, seed)
    with step.say("Pretrain on the unlabelled images (Siamese DETR)", budget.pretrain_time):
        pretrained = _pretrain(data, output / "pretrained", budget, seed)
    runs: dict[str, RunResult] = {}
    for name, init in (("finetuned", pretrained.folder), ("scratch", None)):
        how = "from the pretrained detector" if init else "from scratch, the same budget"
        with step.say(f"Finetune on {budget.num_labelled} labelled images {how}", budget.finetune_time):
            runs[name] = _finetune(data, init, output / name, budget, seed)
    truth = open_dataset(data, split="val")
    with step.say("Evaluate both on the validation images, export to ONNX and compare", "under a minute"):
        scores = {name: evaluate(SiamDETR.load(run.folder), truth) for name, run in runs.items()}
        exported = _export(runs["finetuned"].folder, output / "export", truth)
    with step.say("Write the report", "seconds"):
        folders = {name: run.folder for name, run in runs.items()}
        report = write_quickstart_report(output, pretrained.folder, folders, scores, exported)
    for name, metrics in scores.items():
        console.print(f"  {name:10}  AP {metrics.ap:.3f}   AP50 {metrics.ap50:.3f}   AR@10 {metrics.ar10:.3f}")
    console.print(
        f"\nDone in {(time.perf_counter() - started) / 60:.1f} minutes. Open {bold(report)}. With your own data:"
    )
    for line in NEXT:
        console.print(f"  {line}", markup=False, soft_wrap=True)


NEXT = (
    "siamdetr doctor LABELLED                          # what is wrong with the data, before anything else",
    "siamdetr train --data UNLABELLED --preset small -o runs/pretrained",
    "siamdetr finetune --data LABELLED --preset small --init runs/pretrained -o runs/finetuned",
    "siamdetr val runs/finetuned --data LABELLED",
    "siamdetr export runs/finetuned -o bundle",
)


def free_folder(folder: Path) -> Path:
    """`folder`, or the first of `folder`-2, -3, … that does not exist, so that nothing is overwritten."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


class _Steps:
    """Print numbered steps and their durations."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.number = 0

    @contextmanager
    def say(self, what: str, expected: str) -> Iterator[None]:
        from siamdetr.cli.console import console

        self.number += 1
        console.rule(f"[bold]{self.number}/{self.total}[/] {what} [dim]({expected})[/]", align="left")
        started = time.perf_counter()
        yield
        console.print(f"[dim]took {time.perf_counter() - started:.0f} s[/]")


def _draw(folder: Path, budget: Budget, seed: int) -> Path:
    from siamdetr.cli.console import progress
    from siamdetr.data.synthetic.shapes import write_synthetic

    with progress("draw") as update:
        write_synthetic(
            folder,
            seed=seed,
            num_unlabelled=budget.num_unlabelled,
            num_train=budget.num_labelled,
            num_val=budget.num_val,
            classes=_CLASSES,
            progress=update,
        )
    return folder


def _pretrain(data: Path, folder: Path, budget: Budget, seed: int) -> RunResult:
    from siamdetr.cli.console import RunProgress
    from siamdetr.pretext.run_settings import PretrainSettings
    from siamdetr.settings.resolve import resolve
    from siamdetr.training.pretrain import pretrain

    flags = {
        "data.paths": [str(data / "unlabelled")],
        "steps": budget.pretrain_steps,
        "batch_size": budget.batch_size,
        "seed": seed,
        "output": str(folder),
    }
    with RunProgress() as sink:
        return pretrain(resolve(PretrainSettings, preset="quickstart", flags=flags), progress=sink)


def _finetune(data: Path, init: Path | None, folder: Path, budget: Budget, seed: int) -> RunResult:
    from siamdetr.cli.console import RunProgress
    from siamdetr.settings.resolve import resolve
    from siamdetr.settings.training import FinetuneSettings
    from siamdetr.training.finetune import finetune

    images_seen = budget.finetune_steps * budget.batch_size
    flags = {
        "data.paths": [str(data)],
        "init": None if init is None else str(init),
        "steps": budget.finetune_steps,
        "batch_size": budget.batch_size,
        "val_every": images_seen / budget.num_labelled / budget.evaluations,
        "seed": seed,
        "output": str(folder),
    }
    with RunProgress() as sink:
        return finetune(resolve(FinetuneSettings, preset="quickstart", flags=flags), progress=sink)


def _export(run: Path, folder: Path, truth: DetectionIndex) -> ExportResult:
    from siamdetr.api import SiamDETR
    from siamdetr.cli.console import progress
    from siamdetr.export.gate.images import samples_of
    from siamdetr.export.onnx import export_onnx

    with progress("export") as update:
        return export_onnx(SiamDETR.load(run), folder, samples=samples_of(truth, 4), progress=update)
