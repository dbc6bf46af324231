"""The report of an evaluation.

COCO's figures, thresholds, confusion, curves, and the worst mistakes as pictures.

What it leaves in a folder: report.html, plots/*.png and *.svg, mistakes/*.jpg, thresholds.csv, confusion.csv,
mistakes.csv.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from siamdetr.drawing.html_page import Section, page, picture, table
from siamdetr.drawing.plot import Plot, save_plots
from siamdetr.errors import UnreadableImageError
from siamdetr.evaluation.coco_figures import DetectionMetrics
from siamdetr.evaluation.confusion import BACKGROUND, Confusion, confusion_of
from siamdetr.evaluation.matched import Matched
from siamdetr.evaluation.mistakes import Mistake, count_mistakes, find_mistakes, worst_mistakes
from siamdetr.evaluation.thresholds import OperatingPoint, ThresholdCurve, best_f1, threshold_curves
from siamdetr.files import REPORT_FILE
from siamdetr.reports.evaluation_plots import confusion_matrix, f1_over_threshold, precision_recall
from siamdetr.reports.mistake_pictures import caption_of, picture_of
from siamdetr.system.atomic_file import atomic_bytes
from siamdetr.system.plain_text import csv_cell

MISTAKES = "mistakes"  # folder of jpg files, and the name of the table
DEFAULT_THRESHOLD = 0.5  # where nothing is found at any threshold


@dataclass(frozen=True)
class Analysis:
    """The results of an evaluation at one score threshold.

    Attributes:
        matched: all detections.
        threshold: the one that confusion and mistakes are counted at.
        curves: of all classes, then of each.
        confusion: at the threshold.
        mistakes: at the threshold.
    """

    matched: Matched
    threshold: float
    curves: tuple[ThresholdCurve, ...]
    confusion: Confusion
    mistakes: list[Mistake]


def analyse(matched: Matched, threshold: float | None = None) -> Analysis:
    """Count curves, confusion and mistakes; without a threshold at that of the best F1 of all classes."""
    curves = threshold_curves(matched)
    if threshold is None:
        best = best_f1(curves[0])
        threshold = DEFAULT_THRESHOLD if best is None else best.threshold
    mistakes = find_mistakes(matched.above(threshold))
    return Analysis(matched, threshold, curves, confusion_of(matched, threshold), mistakes)


def analysis_sections(analysis: Analysis) -> list[Section]:
    """The analysis as sections of a report."""
    counts = count_mistakes(analysis.mistakes)
    at = f"at the threshold {analysis.threshold:.3f}"
    sections = [Section(plot.title, plot.inline) for plot in plots_of(analysis)]
    sections.append(Section(f"Mistakes {at}", table(["kind", "number"], list(counts.items()))))
    sections.append(Section("Thresholds of the best F1 (IoU .5)", table(_HEADER, _threshold_rows(analysis.curves))))
    pictures = [_figure(mistake, analysis.matched) for mistake in worst_mistakes(analysis.mistakes)]
    body = Markup("").join(shown for shown in pictures if shown is not None)
    if body:
        title = f"The worst mistakes of each kind {at}: truth dashed, detection solid"
        sections.append(Section(title, Markup("<div class=crops>{}</div>").format(body), wide=True))
    return sections


def plots_of(analysis: Analysis) -> list[Plot]:
    """The plots of an analysis."""
    return [
        precision_recall(analysis.curves),
        f1_over_threshold(analysis.curves),
        confusion_matrix(analysis.confusion),
    ]


def write_evaluation(folder: Path, metrics: DetectionMetrics, analysis: Analysis, *, title: str, lead: str) -> Path:
    """Write the report of an evaluation with its plots, pictures and tables.

    Returns the path of report.html.
    """
    save_plots(folder, plots_of(analysis))
    for number, mistake in enumerate(worst_mistakes(analysis.mistakes), start=1):
        data = _jpeg(mistake, analysis.matched)
        if data is not None:
            name = f"{number:02} {mistake.kind}.jpg"
            atomic_bytes(folder / MISTAKES / name, data)
    _write_csv(folder / "thresholds.csv", _HEADER, _threshold_rows(analysis.curves))
    names = [*analysis.confusion.class_names, BACKGROUND]
    counts = [[name, *row.tolist()] for name, row in zip(names, analysis.confusion.counts, strict=True)]
    _write_csv(folder / "confusion.csv", ["true \\ predicted", *names], counts)
    _write_csv(folder / f"{MISTAKES}.csv", _MISTAKE_HEADER, [_mistake_row(m, analysis) for m in analysis.mistakes])
    figures = Section("COCO metrics", table(["metric", "value"], _metric_rows(metrics)))
    per_class = table(
        ["class", "boxes", "AP", "AP50", "AP75", "AR@100"],
        [[row.name, row.num_boxes, row.ap, row.ap50, row.ap75, row.ar100] for row in metrics.per_class],
    )
    text = page(title, lead, [figures, Section("Per class", per_class), *analysis_sections(analysis)])
    atomic_bytes(folder / REPORT_FILE, text.encode())
    return folder / REPORT_FILE


_HEADER = ("class", "objects", "threshold", "precision", "recall", "F1")
_MISTAKE_HEADER = ("kind", "image", "file", "class", "score", "x0", "y0", "x1", "y1", "true class", "IoU")


def _threshold_rows(curves: Sequence[ThresholdCurve]) -> list[list[object]]:
    return [[curve.name, curve.num_objects, *_point(best_f1(curve))] for curve in curves]


def _point(point: OperatingPoint | None) -> tuple[float | None, ...]:
    return (None,) * 4 if point is None else (point.threshold, point.precision, point.recall, point.f1)


def _metric_rows(metrics: DetectionMetrics) -> list[tuple[str, float | None]]:
    names = {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "AP small": "ap_small", "AP medium": "ap_medium"}
    names |= {"AP large": "ap_large", "AR@1": "ar1", "AR@10": "ar10", "AR@100": "ar100"}
    return [(name, getattr(metrics, field)) for name, field in names.items()]


def _mistake_row(mistake: Mistake, analysis: Analysis) -> list[object]:
    index = analysis.matched.index
    truth = "" if mistake.truth is None else index.class_names[int(index.labels[mistake.truth])]
    score = "" if mistake.kind == "missed" else f"{mistake.score:.4f}"
    box = [f"{value:.1f}" for value in mistake.box]
    image = int(index.image_ids[mistake.image])
    name = index.class_names[mistake.label]
    path = index.relative_path(mistake.image)
    return [mistake.kind, image, path, name, score, *box, truth, f"{mistake.overlap:.3f}"]


def _jpeg(mistake: Mistake, matched: Matched) -> bytes | None:
    """The picture, or None where its image cannot be read any more."""
    try:
        return picture_of(mistake, matched.index)
    except UnreadableImageError:
        return None


def _figure(mistake: Mistake, matched: Matched) -> Markup | None:
    data = _jpeg(mistake, matched)
    return None if data is None else picture(data, caption_of(mistake, matched.index))


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([[csv_cell(value) for value in row] for row in (header, *rows)])
    atomic_bytes(path, text.getvalue().encode())
