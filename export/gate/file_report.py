"""The report of the gate between two files: verdict, table, and the images on which they differ most.

What it leaves in a folder: report.html, gate.json, images/*.jpg.
"""

from __future__ import annotations

import json
from pathlib import Path

from markupsafe import Markup

from siamdetr.drawing.boxes import draw_side_by_side
from siamdetr.drawing.crops import jpeg
from siamdetr.drawing.html_page import Section, page, picture, table
from siamdetr.export.gate.files import FileReport, ImageDifference, NamedFile
from siamdetr.files import REPORT_FILE
from siamdetr.images.preprocessing import load_image
from siamdetr.inference.predictor import predict
from siamdetr.system.atomic_file import atomic_bytes, atomic_text

SHOWN = 8  # pictures
_WIDTH = 1200  # pixels of a picture
_THRESHOLD = 0.3  # score from which boxes are drawn


def write_file_report(folder: Path, report: FileReport, a: NamedFile, b: NamedFile) -> Path:
    """Write the report; returns the path of report.html."""
    worst = sorted(report.images, key=lambda one: (one.difference.matched, -one.difference.score))[:SHOWN]
    figures = [_figure(folder, number, one, a, b) for number, one in enumerate(worst, start=1)]
    sections = [
        Section("Verdict", table(["", report.a, report.b], _summary(report))),
        Section("Why not", table(["out of tolerance"], [[text] for text in report.failures()])),
        Section(f"The {len(worst)} images that differ most", Markup("").join(figures), wide=True),
        Section("All images", table(_HEADER, [_row(one) for one in report.images]), wide=True),
    ]
    if report.passed:
        del sections[1]
    atomic_text(folder / "gate.json", json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n")
    text = page("siamdetr gate", sentence(report), sections)
    atomic_bytes(folder / REPORT_FILE, text.encode())
    return folder / REPORT_FILE


def sentence(report: FileReport) -> str:
    """The verdict and its figures in a sentence or two."""
    text = (
        f"{'PASS' if report.passed else 'FAIL'} at {report.precision}: {report.matched:.1%} of the boxes of {report.a} and {report.b} "
        f"have a counterpart on {len(report.images)} images ({len(report.classes)} classes)."
    )
    if report.ap is not None:
        text += f" AP {report.ap.pytorch:.4f} and {report.ap.exported:.4f} on {report.ap.images} images "
        text += f"(95 % interval of the loss: {report.ap.loss:.4f} ± {report.ap.half_width:.4f})."
    return text


_HEADER = ("image", "boxes of A", "boxes of B", "matched", "judged", "scores differ by", "boxes differ by")


def _summary(report: FileReport) -> list[list[object]]:
    rows: list[list[object]] = [["runtime", *report.runtimes]]
    if report.ap is not None:
        rows.append(["AP", report.ap.pytorch, report.ap.exported])
    rows.append(["equal images differ by", *(f"{error:.1e}" for error in report.row_errors)])
    return rows


def _row(one: ImageDifference) -> list[object]:
    apart = one.difference
    return [one.image.name, *one.boxes, apart.matched, apart.compared, f"{apart.score:.2g}", f"{apart.box:.2g}"]


def _figure(folder: Path, number: int, one: ImageDifference, a: NamedFile, b: NamedFile) -> Markup:
    image = load_image(one.image)
    found = [predict(file.predictor, [image], threshold=_THRESHOLD) for file in (a, b)]
    assert isinstance(found[0], list)
    assert isinstance(found[1], list)
    pair = draw_side_by_side(image, found[0][0], found[1][0], captions=(a.name, b.name))
    pair.thumbnail((_WIDTH, _WIDTH))
    data = jpeg(pair)
    atomic_bytes(folder / "images" / f"{number:02} {one.image.stem}.jpg", data)
    return picture(data, f"{one.image.name}: {one.difference.matched:.0%} matched")
