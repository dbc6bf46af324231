"""`siamdetr doctor DATA`: list every problem of a data set, and what training does with it.

With a model it also lists likely label errors.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siamdetr.cli import options

if TYPE_CHECKING:
    from siamdetr.api import Model, SiamDETR
    from siamdetr.data.doctor import Diagnosis
    from siamdetr.data.index import DetectionIndex
    from siamdetr.data.problems import Severity

_CLASSES = 12  # listed in the statistics
_COLOURS = {"error": "red", "warning": "yellow", "info": "dim"}


def doctor(
    data: Annotated[Path, typer.Argument(help="A data set: COCO, PASCAL VOC or YOLO, or a folder of images.")],
    data_format: options.Format = "auto",
    split: Annotated[list[str] | None, typer.Option("--split", help="Only this part; may be given again.")] = None,
    workers: options.Workers = None,
    show: Annotated[int, typer.Option("--show", min=0, help="Lines shown of each kind of problem.")] = 10,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all of it to this file.")] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="A model that was trained on other images: also look for errors in the labels."),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where --model writes its report of each split.")
    ] = Path("label-errors"),
    device: options.Device = "auto",
    backend: options.Backend = None,
) -> None:
    """Read every annotation and every image; list the problems and what training does with each.

    With --model, also list boxes that are likely missing, wrong or loose. Exits with 1 if something will be left out.
    """
    from siamdetr.cli.console import progress
    from siamdetr.cli.usage.model import open_model
    from siamdetr.data.doctor import diagnose
    from siamdetr.data.readers.recognise import find_source
    from siamdetr.system.atomic_file import atomic_write
    from siamdetr.system.outputs import Read, Written, check_outputs, model_reads

    if json_file is not None and not _is_report(json_file):
        # A new file in the data's own folder is no annotation file for any reader, unless it is named like one.
        beside = json_file.parent.resolve() == data.resolve() and not json_file.exists()
        named = json_file.suffix != ".json" or json_file.name.startswith(("instances_", "_annotations"))
        check_outputs([] if beside and not named else [Read("DATA", data)], files=[Written("--json", json_file)])
    if model is not None:
        check_outputs([*model_reads("--model", model), Read("DATA", data)], folders=[Written("-o", output)])
    with progress("read images") as update:
        found = diagnose(data, format=data_format, splits=split, progress=update, workers=workers)
    _show_statistics(found)
    for severity in ("error", "warning", "info"):
        _show_problems(found, severity, show)
    _show_remarks(found, show)
    _show_verdict(found)
    if json_file is not None:
        atomic_write(json_file, lambda file: file.write(found.to_json().encode()))
    if model is not None:
        opened = open_model(model, device=device, backend=backend)
        source = find_source(data, data_format)
        for name in [one.name for one in found.splits if one.boxes]:
            _find_label_errors(opened, source.open(name), name, output / name)
    raise typer.Exit(1 if found.count("error") else 0)


def _is_report(file: Path) -> bool:
    """Whether a file is the report of an earlier call, which may be overwritten anywhere."""
    import json

    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"counts", "problems"} <= found.keys()


def _show_statistics(found: Diagnosis) -> None:
    from rich.table import Table

    from siamdetr.cli.console import bold, console

    table = Table("split", box=None, pad_edge=False)
    for column in ("images", "without boxes", "boxes", "crowds", "difficult", "classes"):
        table.add_column(column, justify="right")
    totals: Counter[str] = Counter()
    for split in found.splits:
        totals.update(split.class_counts)
        numbers = (split.images, split.images_without_boxes, split.boxes, split.crowds, split.difficult)
        table.add_row(split.name, *(f"{number:,}" for number in (*numbers, len(split.class_counts))))
    console.print(f"{bold(found.root)}: {found.format} layout")
    console.print(table)
    most = ", ".join(f"{name} {count:,}" for name, count in totals.most_common(_CLASSES))
    more = f", … ({len(totals)} classes)" if len(totals) > _CLASSES else ""
    if totals:
        console.print(f"boxes: {most}{more}", markup=False)


def _show_problems(found: Diagnosis, severity: Severity, show: int) -> None:
    from siamdetr.cli.console import console
    from siamdetr.data.problems import KINDS, count_by_kind

    problems = [problem for problem in found.problems if problem.severity == severity]
    for kind, count in count_by_kind(problems).items():
        about = KINDS[kind]
        console.print(
            f"\n[bold {_COLOURS[severity]}]{severity}[/] {count} × {about.title}: {about.action}", soft_wrap=True
        )
        cases = [problem for problem in problems if problem.kind == kind]
        for case in cases[:show]:
            place = f"{case.file}, {case.where}" if case.where else case.file
            line = f"  {place}" + (f": {case.what}" if case.what else "")
            console.print(line, markup=False, soft_wrap=True)
        if len(cases) > show:
            console.print(f"  … and {len(cases) - show} more (--show, --json)", style="dim")


def _show_remarks(found: Diagnosis, show: int) -> None:
    from siamdetr.cli.console import console
    from siamdetr.data.remarks import REMARKS

    for kind, (title, advice) in REMARKS.items():
        cases = [remark for remark in found.remarks if remark.kind == kind]
        if cases:
            console.print(f"\n[bold cyan]remark[/] {len(cases)} × {title}: {advice}", soft_wrap=True)
        for case in cases[:show]:
            console.print(f"  '{case.split}', {case.where}: {case.what}", markup=False, soft_wrap=True)
        if len(cases) > show:
            console.print(f"  … and {len(cases) - show} more (--show, --json)", style="dim")


def _find_label_errors(model: Model | SiamDETR, index: DetectionIndex, split: str, folder: Path) -> None:
    """Compare the labels of a split with a model's detections; write the report and name it."""
    from siamdetr.cli.console import console, progress
    from siamdetr.evaluation.coco import detect
    from siamdetr.evaluation.matched import match_results
    from siamdetr.evaluation.suspects import SUSPECT_KINDS, believed_from, find_suspects
    from siamdetr.inference.inspect_any import inspect_image
    from siamdetr.reports.label_errors import write_label_errors

    with progress(f"detect in {split}") as update:
        scorer = detect(model, index, progress=update)
    matched = match_results(scorer.results(), scorer.index)
    threshold = model.threshold if model.threshold_from else believed_from(matched)
    suspects = find_suspects(matched, threshold)
    counts = ", ".join(f"{sum(one.kind == kind for one in suspects)} × {kind}" for kind in SUSPECT_KINDS)
    lead = f"{counts} in {len(index)} images: what the model is sure of (scores from {threshold:.3f}) and the labels contradict."
    report = write_label_errors(
        folder,
        suspects,
        scorer.index,
        lambda image: inspect_image(model, image),
        title=f"siamdetr doctor · {split}",
        lead=lead,
    )
    console.print(f"\nlikely label errors in '{split}': {counts}. Look at {report}", markup=False, soft_wrap=True)


def _show_verdict(found: Diagnosis) -> None:
    from siamdetr.cli.console import console

    errors, warnings = found.count("error"), found.count("warning")
    boxes = sum(split.boxes for split in found.splits)
    if found.clean and boxes == 0:
        console.print(
            "\n[bold green]healthy[/] for pretraining (siamdetr train): every image is used. There is no labelled box, which siamdetr "
            "finetune needs",
            soft_wrap=True,
        )
    elif found.clean:
        console.print("\n[bold green]healthy[/]: nothing will be left out")
    else:
        console.print(f"\n{errors} errors (left out in training; --strict refuses them), {warnings} warnings")
