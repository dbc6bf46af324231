"""The quickstart's report: two finetunings side by side, the pretraining, and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from siamdetr.drawing.html_page import Curve, Section
    from siamdetr.evaluation.coco_figures import DetectionMetrics
    from siamdetr.export.onnx import ExportResult

NAMES = {"finetuned": "pretrained, then finetuned", "scratch": "from scratch"}


def write_quickstart_report(
    folder: Path,
    pretrained: Path,
    runs: Mapping[str, Path],
    scores: Mapping[str, DetectionMetrics],
    exported: ExportResult,
) -> Path:
    """Write the self-contained `folder`/report.html; returns its path.

    Args:
        folder: of the quickstart.
        pretrained: run folder of the pretraining.
        runs: run folders by name: "finetuned" and "scratch".
        scores: their figures on the validation images.
        exported: the ONNX export of "finetuned".
    """
    from siamdetr.drawing.html_page import Section, curve, curves_svg, page, read_metrics
    from siamdetr.files import REPORT_FILE
    from siamdetr.system.atomic_file import atomic_text
    from siamdetr.training.run_report import picture_sections

    rows = {name: read_metrics(run) for name, run in runs.items()}
    before = read_metrics(pretrained)
    sections = [
        Section("AP on the validation images", curves_svg(_curves(rows, "val_ap"), y_label="AP")),
        Section("AP50 on the validation images", curves_svg(_curves(rows, "val_ap50"), y_label="AP50")),
        Section("Loss of both finetunings", curves_svg(_curves(rows, "loss"), y_label="loss")),
        Section("Loss of the pretraining", curves_svg([curve(before, "loss", "loss")], y_label="loss")),
        _score_section(scores),
        _export_section(exported),
        *picture_sections(runs["finetuned"]),
    ]
    text = page("siamdetr quickstart", _lead(scores), sections)
    path = folder / REPORT_FILE
    atomic_text(path, text)
    return path


def _curves(rows: Mapping[str, list[dict[str, float]]], key: str) -> list[Curve]:
    from siamdetr.drawing.html_page import curve

    return [curve(found, key, NAMES[name]) for name, found in rows.items()]


def _lead(scores: Mapping[str, DetectionMetrics]) -> str:
    gain = scores["finetuned"].ap - scores["scratch"].ap
    verdict = "gave" if gain >= 0 else "cost"
    return (
        f"Siamese pretraining {verdict} {abs(gain):.3f} AP here: {scores['finetuned'].ap:.3f} with it, "
        f"{scores['scratch'].ap:.3f} from scratch, after the same number of finetuning steps on the same labelled images "
        f"(AP50 {scores['finetuned'].ap50:.3f} and {scores['scratch'].ap50:.3f}). One run of each: a difference of a few "
        "hundredths is within chance."
    )


def _export_section(exported: ExportResult) -> Section:
    from siamdetr.drawing.html_page import Section, table

    header = ["batch", "image", "largest score error", "largest box error (of the image)"]
    rows = [
        [check.batch_size, f"{check.height}×{check.width}", f"{check.score_error:.1e}", f"{check.box_error:.1e}"]
        for check in (exported.gate.checks if exported.gate else ())
    ]
    title = f"ONNX file against PyTorch ({exported.num_bytes / 2**20:.1f} MiB)"
    return Section(title, table(header, rows), wide=True)


def _score_section(scores: Mapping[str, DetectionMetrics]) -> Section:
    from siamdetr.drawing.html_page import Section, table

    header = ["", "AP", "AP50", "AP75", "AR@1", "AR@10", "AR@100"]
    rows = [[NAMES[name], m.ap, m.ap50, m.ap75, m.ar1, m.ar10, m.ar100] for name, m in scores.items()]
    classes = [[c.name, c.num_boxes, c.ap, s.ap] for c, s in zip(*(m.per_class for m in scores.values()), strict=True)]
    per_class = table(["class", "boxes", *(f"AP {NAMES[name]}" for name in scores)], classes)
    return Section("COCO figures", table(header, rows) + Markup("<br>") + per_class, wide=True)
