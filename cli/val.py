"""`siamdetr val MODEL --data DATA`: COCO's figures of a model on a labelled data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siamdetr.cli import options

if TYPE_CHECKING:
    from siamdetr.api import Model, SiamDETR
    from siamdetr.data.index import DetectionIndex
    from siamdetr.evaluation.coco_figures import DetectionMetrics
    from siamdetr.evaluation.scorer import CocoScorer
    from siamdetr.evaluation.thresholds import ThresholdRule
    from siamdetr.reports.evaluation_report import Analysis


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
    compiled: options.Compile = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Also write a report there: thresholds, confusion, curves, the worst mistakes."
        ),
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            "--threshold",
            metavar="SCORE|best|precision=P",
            help="Score at which mistakes are counted. best (of F1) and precision=0.9 choose one and store it in MODEL, where "
            "predict, label, serve, demo and infer.py find it.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the detections there, in COCO's results format.")
    ] = None,
    max_detections: Annotated[
        int, typer.Option("--max-detections", min=1, help="Detections of an image that count; COCO's protocol: 100.")
    ] = 100,
) -> None:
    """Score a model (or a file of COCO results) on a labelled data set: AP, AR, and a table of classes.

    Exits with 1 if images had to be skipped.
    """
    from siamdetr.cli.console import console
    from siamdetr.cli.usage.model import open_model
    from siamdetr.data.readers.recognise import find_source
    from siamdetr.evaluation.coco import read_scorer, warn_of_crowded_images
    from siamdetr.evaluation.results import write_results
    from siamdetr.evaluation.thresholds import ThresholdRule, parse_threshold
    from siamdetr.system.outputs import Read, Written, check_outputs, model_reads

    wanted = None if threshold is None else parse_threshold(threshold)
    if isinstance(wanted, ThresholdRule) and model.suffix == ".json":
        raise ValueError(f"--threshold {threshold}: MODEL is a file of results, which holds no threshold; give a model")
    reads = [*model_reads("MODEL", model), Read("--data", data)]
    check_outputs(
        reads,
        files=[] if json_file is None else [Written("--json", json_file)],
        folders=[] if output is None else [Written("-o", output)],
    )
    source = find_source(data, data_format)
    split = split or source.first_split(("val", "test"))
    index = source.open(split)
    warn_of_crowded_images(index, max_detections)
    if model.suffix == ".json":
        scorer = read_scorer(model, index, max_detections=max_detections)
    else:
        opened = open_model(model, device=device, backend=backend, compiled=compiled)
        scorer = _detect(opened, index, batch_size, workers, max_detections)
    if json_file is not None:
        write_results(json_file, scorer.results(), index)
    where = f"{data} ({split or 'all'}, {len(index)} images)"
    score = _store_threshold(model, wanted, scorer, where) if isinstance(wanted, ThresholdRule) else wanted
    _report(scorer, where, score, output, title=f"siamdetr val · {model}")
    if scorer.skipped:
        console.print(
            f"\n{len(scorer.skipped)} of {len(index)} images were skipped (named above) and count as images without detections.",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _detect(
    model: Model | SiamDETR, index: DetectionIndex, batch_size: int, workers: int | None, max_detections: int
) -> CocoScorer:
    from siamdetr.cli.console import progress
    from siamdetr.evaluation.coco import detect

    with progress("evaluate") as update:
        return detect(
            model,
            index,
            batch_size=batch_size,
            workers=2 if workers is None else workers,
            progress=update,
            max_detections=max_detections,
        )


def _store_threshold(model: Path, rule: ThresholdRule, scorer: CocoScorer, where: str) -> float:
    """Choose a threshold and write it into the model's file."""
    from siamdetr.cli.console import console
    from siamdetr.evaluation.matched import match_results
    from siamdetr.evaluation.thresholds import threshold_curves
    from siamdetr.export.threshold import store_threshold

    point = rule.choose(threshold_curves(match_results(scorer.results(), scorer.index))[0])
    changed = store_threshold(model, point.threshold, f"{rule} on {where}")
    console.print(
        f"\nThreshold {point.threshold:.3f} ({rule}: precision {point.precision:.3f}, recall {point.recall:.3f}) is stored in {changed}",
        markup=False,
        soft_wrap=True,
    )
    return point.threshold


def _report(scorer: CocoScorer, where: str, threshold: float | None, output: Path | None, *, title: str) -> None:
    """Print the figures, and write the report if a folder for it was named."""
    from siamdetr.cli.console import console
    from siamdetr.evaluation.matched import match_results
    from siamdetr.reports.evaluation_report import analyse, write_evaluation

    metrics = scorer.summarize()
    show_metrics(metrics, where)
    analysis = analyse(match_results(scorer.results(), scorer.index), threshold)
    show_analysis(analysis)
    if output is not None:
        lead = f"AP {metrics.ap:.3f}, AP50 {metrics.ap50:.3f} on {where}. Mistakes are counted at the score {analysis.threshold:.3f}."
        report = write_evaluation(output, metrics, analysis, title=title, lead=lead)
        console.print(f"\nReport: {report}", markup=False)


def show_metrics(metrics: DetectionMetrics, where: str) -> None:
    """Print COCO's figures and the table of classes."""
    from rich.table import Table

    from siamdetr.cli.console import bold, console

    most = metrics.max_detections
    console.print(f"\n{bold(where)}")
    figures = Table("AP", "AP50", "AP75", "small", "medium", "large", "AR@1", "AR@10", f"AR@{most}", box=None)
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
    figures.add_row(*(_figure(getattr(metrics, name)) for name in names))
    console.print(figures)
    classes = Table("class", "boxes", "AP", "AP50", "AP75", f"AR@{most}", box=None)
    for row in metrics.per_class:
        classes.add_row(row.name, f"{row.num_boxes:,}", *(_figure(x) for x in (row.ap, row.ap50, row.ap75, row.ar100)))
    console.print()
    console.print(classes)


def show_analysis(analysis: Analysis) -> None:
    """Print the threshold of the best F1, and the number of mistakes of each kind."""
    from siamdetr.cli.console import console
    from siamdetr.evaluation.mistakes import count_mistakes
    from siamdetr.evaluation.thresholds import best_f1

    best = best_f1(analysis.curves[0])
    if best is not None:
        console.print(
            f"\nBest F1 {best.f1:.3f} at the threshold {best.threshold:.3f}: precision {best.precision:.3f}, recall {best.recall:.3f}"
        )
    counts = ", ".join(f"{number:,} {kind}" for kind, number in count_mistakes(analysis.mistakes).items())
    console.print(f"Mistakes at {analysis.threshold:.3f}: {counts}")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
