"""`siamdetr study NAME --data DATA`: measure whether pretraining helps, by a grid of runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from siamdetr.cli import options
from siamdetr.cli.usage import study_options as flags

if TYPE_CHECKING:
    from siamdetr.study.run_cell import CellOutcome
    from siamdetr.study.runner import Grid
    from siamdetr.study.settings import StudySettings
    from siamdetr.system.parallel import TaskRunner

_FAST: dict[str, Any] = {
    "fast": True,
    "fractions": (0.3, 1.0),
    "seeds": (0, 1),
    "pretrain_steps": 4,
    "finetune_steps": 6,
    "evaluations": 2,
    "score_limit": 6,
    "weights": (1.0, 3.0),
    "view_ious": (0.3, 0.5),
    "shown": 2,
    "cost_steps": 8,
}


def study(
    name: flags.Name,
    data: options.DataList,
    output: options.Output = None,
    unlabelled: flags.Unlabelled = [],  # noqa: B006 - typer copies it
    allow_overlap: flags.AllowOverlap = False,
    preset: options.Preset = None,
    start: flags.Start = None,
    methods: flags.Methods = None,
    fractions: flags.Fractions = None,
    seeds: flags.Seeds = None,
    pretrain_steps: flags.PretrainSteps = None,
    finetune_steps: flags.FinetuneSteps = None,
    evaluations: flags.Evaluations = None,
    imgsz: options.ImageSize = None,
    batch_size: options.BatchSize = None,
    jobs: flags.Jobs = 1,
    ray: flags.Ray = None,
    cpus: flags.Cpus = 2,
    gpus: flags.Gpus = 0,
    dry_run: flags.DryRun = False,
    fast: flags.Fast = False,
    device: options.Device = "auto",
    data_format: options.Format = "auto",
    split: options.Split = None,
    val_split: flags.ValSplit = None,
    test_split: flags.TestSplit = None,
    both: options.Set = [],  # noqa: B006 - typer copies it
    pretrain: flags.PretrainSet = [],  # noqa: B006 - typer copies it
    finetune: flags.FinetuneSet = [],  # noqa: B006 - typer copies it
) -> None:
    """Measure whether pretraining helps on your data.

    It runs a grid of trainings over seeds, and writes a report with intervals.

    After an interruption the same command continues; finished cells are kept.
    """
    from siamdetr.pretext.registry import PRETEXTS
    from siamdetr.study.runner import open_grid
    from siamdetr.system.outputs import Read, Written, check_outputs
    from siamdetr.training.initial_weights import read_start

    values = {
        "study": name,
        "data": [str(path.resolve()) for path in data],
        "unlabelled": [str(path.resolve()) for path in unlabelled],
        "allow_overlap": allow_overlap,
        "format": data_format,
        "split": split,
        "val_split": val_split,
        "test_split": test_split,
        "preset": preset,
        "start": str(Path(start).resolve()) if start is not None and Path(start).exists() else start,
        "methods": _texts(methods),
        "fractions": _numbers(fractions, "--fractions", float),
        "seeds": _numbers(seeds, "--seeds", int),
        "pretrain_steps": pretrain_steps,
        "finetune_steps": finetune_steps,
        "evaluations": evaluations,
        "both": [*both, *([] if batch_size is None else [f"batch_size={batch_size}"])],
        "pretrain": [*pretrain, *(f"{method}.{size}" for size in _size(imgsz) for method in PRETEXTS)],
        "finetune": [*finetune, *(f"images.{size}" for size in _size(imgsz))],
    }
    given = {key: value for key, value in values.items() if value is not None}
    settings = _settings((_FAST if fast else {}) | given)
    if settings.start is not None:
        read_start(settings.start)  # refused now, not in every cell
    folder = output or Path("runs") / f"study-{name}"
    reads = [*(Read("--data", path) for path in data), *(Read("--unlabelled", path) for path in unlabelled)]
    check_outputs(reads, folders=[Written("-o", folder)])
    with _warnings_only("siamdetr.training"):
        grid = open_grid(settings, folder, write=not dry_run)
        if dry_run:
            _show_plan(grid, device, jobs)
        else:
            _run(grid, _engine(settings, jobs, ray, cpus, gpus), device, jobs)


def _size(imgsz: str | None) -> list[str]:
    """--imgsz as an assignment, "size=640" or "size=[480, 640]"; empty if it was not given."""
    size = options.image_size(imgsz)
    return [] if size is None else [f"size={list(size) if isinstance(size, tuple) else size}"]


def _texts(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str | None, flag: str, kind: type[int] | type[float]) -> list[int | float] | None:
    try:
        return None if text is None else [kind(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{flag} got '{text}', expected numbers with commas between them") from None


def _settings(values: dict[str, Any]) -> StudySettings:
    from pydantic import ValidationError

    from siamdetr.errors import StudyError
    from siamdetr.settings.resolve import explain
    from siamdetr.study.settings import StudySettings

    try:
        return StudySettings.model_validate(values)
    except ValidationError as error:
        raise StudyError(explain(error)) from None


def _engine(settings: StudySettings, jobs: int, ray: str | None, cpus: float, gpus: float) -> TaskRunner:
    from siamdetr.system.parallel import TaskRunner

    if ray is not None:
        return TaskRunner("ray", jobs if jobs > 1 else None, ray, cpus=cpus, gpus=gpus)
    if settings.study == "cost":  # one after the other, each with its own peak of memory
        return TaskRunner("processes", 1, fresh=True)
    return TaskRunner("processes", jobs) if jobs > 1 else TaskRunner("here")


@contextmanager
def _warnings_only(name: str) -> Iterator[None]:
    """Limit a logger to warnings inside the block, because each cell prints one line itself."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _run(grid: Grid, engine: TaskRunner, device: str, jobs: int) -> None:
    """Run the missing cells and write the report; after a signal the report covers the finished ones."""
    from siamdetr.cli.console import bold, console
    from siamdetr.study.report import write_study_report
    from siamdetr.study.runner import run_grid
    from siamdetr.study.summary import answer
    from siamdetr.system.signals import SignalWatch
    from siamdetr.system.threads import usable_cores

    failed: list[CellOutcome] = []

    def told(outcome: CellOutcome) -> None:
        if outcome.result is None and not outcome.interrupted:
            failed.append(outcome)
        console.print(f"  {_line(outcome)}", markup=False, soft_wrap=True)

    threads = max(1, usable_cores() // jobs) if jobs > 1 else None
    console.print(f"{len(grid.cells)} cells, {len(grid.results)} finished already; {grid.folder}", soft_wrap=True)
    with SignalWatch() as watch:
        with _cells_bar() as progress:
            grid = run_grid(grid, engine=engine, device=device, threads=threads, progress=progress, told=told)
        report = write_study_report(grid)
    console.print(f"\n{answer(grid)}", markup=False, soft_wrap=True)
    console.print(
        f"Open {bold(report)}; figures and plots are beside it, in {bold('study.csv')} and {bold('plots')}",
        soft_wrap=True,
    )
    if watch.received is not None and grid.missing:
        console.print("Stopped; the same command goes on.")
        raise typer.Exit(128 + watch.received)
    if failed:
        console.print(
            f"[bold red]{len(failed)} cells failed[/]; the report says why, the same command tries them again"
        )
        raise typer.Exit(1)


@contextmanager
def _cells_bar() -> Iterator[Any]:
    from siamdetr.cli.console import progress

    with progress("cells") as update:
        yield update


def _line(outcome: CellOutcome) -> str:
    result = outcome.result
    if result is None:
        return f"{outcome.cell.key}: {'stopped' if outcome.interrupted else 'FAILED'}: {outcome.error}"
    shown = {"ap": "AP", "ap50": "AP50", "ar100": "AR@100", "loss": "loss", "seconds_per_step": "s/step"}
    figures = ", ".join(f"{label} {result.metrics[key]:.3g}" for key, label in shown.items() if key in result.metrics)
    return f"{outcome.cell.key}: {figures or 'done'} ({result.seconds:.0f} s)"


def _show_plan(grid: Grid, device: str, jobs: int) -> None:
    from rich.table import Table

    from siamdetr.cli.console import console
    from siamdetr.study.estimate import estimate

    found = estimate(grid, device=device, told=console.print)
    table = Table("cell", "state", "estimate", box=None)
    for cell in grid.cells:
        if cell in grid.results:
            table.add_row(cell.key, "finished", f"took {_time(grid.results[cell].seconds)}")
        else:
            one = found[cell]
            table.add_row(cell.key, "to do", "–" if one.seconds is None else f"{_time(one.seconds)} ({one.source})")
    console.print(table)
    total = sum(one.seconds or 0 for one in found.values())
    console.print(
        f"\n{len(grid.cells)} cells, {len(grid.results)} finished. The rest takes about {_time(total / jobs)} with {jobs} at a time on "
        "this machine, if as many fit.",
        soft_wrap=True,
    )


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
