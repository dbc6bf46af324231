"""`siamdetr val MODEL --data DATA`: COCO's figures of a model on a labelled data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from siamdetr.cli import options

if TYPE_CHECKING:
    from siamdetr.api import Backend
    from siamdetr.evaluation.coco import DetectionMetrics


def val(
    model: Annotated[
        Path, typer.Argument(help="A run folder, a .safetensors file, an exported file, or COCO results (.json).")
    ],
    data: options.Data,
    split: options.Split = None,
    data_format: options.Format = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at a time.")] = 8,
    workers: options.Workers = None,
    device: options.Device = "auto",
    backend: options.Backend = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the detections there, in COCO's results format.")
    ] = None,
) -> None:
    """Score a model (or a file of COCO results) on a labelled data set: AP, AR, and a table of classes."""
    from siamdetr.api import load
    from siamdetr.cli.console import progress
    from siamdetr.data.readers.recognise import available_splits, open_dataset
    from siamdetr.evaluation.coco import evaluate, score_results
    from siamdetr.system.outputs import Read, Written, check_outputs, model_reads

    if json_file is not None:
        check_outputs([*model_reads("MODEL", model), Read("--data", data)], files=[Written("--json", json_file)])
    if split is None:
        splits = available_splits(data, format=data_format)
        split = next((name for name in ("val", "test") if name in splits), None)
    index = open_dataset(data, format=data_format, split=split)
    if model.suffix == ".json":
        metrics = score_results(model, index)
    else:
        opened = load(model, device=device, backend=cast("Backend | None", backend))
        with progress("evaluate") as update:
            metrics = evaluate(
                opened,
                index,
                batch_size=batch_size,
                workers=2 if workers is None else workers,
                progress=update,
                results_file=json_file,
            )
    show_metrics(metrics, f"{data} ({split or 'all'}, {len(index)} images)")


def show_metrics(metrics: DetectionMetrics, where: str) -> None:
    """Print COCO's figures and the table of classes."""
    from rich.table import Table

    from siamdetr.cli.console import console

    console.print(f"\n[bold]{where}[/]")
    figures = Table("AP", "AP50", "AP75", "small", "medium", "large", "AR@1", "AR@10", "AR@100", box=None)
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
    figures.add_row(*(_figure(getattr(metrics, name)) for name in names))
    console.print(figures)
    classes = Table("class", "boxes", "AP", "AP50", "AP75", "AR@100", box=None)
    for row in metrics.per_class:
        classes.add_row(row.name, f"{row.num_boxes:,}", *(_figure(x) for x in (row.ap, row.ap50, row.ap75, row.ar100)))
    console.print()
    console.print(classes)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
