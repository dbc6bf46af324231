"""The report of likely label errors, as crops with the decoder's attention.

The labelled box is dashed, the model's box is solid.

What it leaves in a folder: report.html, suspects.csv, suspects/*.jpg.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image

from siamdetr.data.index import DetectionIndex
from siamdetr.drawing.attention import chosen_map
from siamdetr.drawing.crops import crop_around, jpeg, with_heat
from siamdetr.drawing.html_page import Section, page, picture, table
from siamdetr.errors import ImageError
from siamdetr.evaluation.mistakes import corners_of
from siamdetr.evaluation.suspects import SUSPECT_KINDS, Suspect
from siamdetr.files import REPORT_FILE
from siamdetr.images.preprocessing import load_image
from siamdetr.inference.attention_maps import Inspection
from siamdetr.reports.mistake_pictures import draw_boxes
from siamdetr.system.atomic_file import atomic_bytes
from siamdetr.system.plain_text import csv_cell

SUSPECTS = "suspects"  # folder of jpg files, and the name of the table
SHOWN = 20  # pictures of each kind
_GAP = 6  # pixels between crop and attention
Inspect = Callable[[Image.Image], Inspection]
_HEADER = (
    "kind", "likelihood", "image", "file", "model's class", "score", "x0", "y0", "x1", "y1",
    "labelled class", "labelled x0", "labelled y0", "labelled x1", "labelled y1", "IoU",
)  # fmt: skip


def write_label_errors(
    folder: Path, suspects: Sequence[Suspect], index: DetectionIndex, inspect: Inspect, *, title: str, lead: str
) -> Path:
    """Write the report: all suspects as a table, the likeliest of each kind as pictures.

    Args:
        folder: where.
        suspects: likeliest first.
        index: the labels.
        inspect: the model's detections of an image and the attention behind them.
        title: of the page.
        lead: its first sentence.
    Returns:
        The path of report.html.
    """
    counts = {kind: sum(one.kind == kind for one in suspects) for kind in SUSPECT_KINDS}
    sections = [Section("Likely label errors", table(["kind", "number"], list(counts.items())))]
    for kind in SUSPECT_KINDS:
        shown = [one for one in suspects if one.kind == kind][:SHOWN]
        figures = [_figure(folder, number, one, index, inspect) for number, one in enumerate(shown, 1)]
        body = Markup("").join(figure for figure in figures if figure is not None)
        if body:
            name = f"{kind.capitalize()}: the likeliest {len(shown)} of {counts[kind]}, label dashed, model solid; attention"
            sections.append(Section(name, Markup("<div class=pictures>{}</div>").format(body), wide=True))
    text = io.StringIO()
    rows = [_HEADER, *(_row(suspect, index) for suspect in suspects)]
    csv.writer(text, lineterminator="\n").writerows([[csv_cell(value) for value in row] for row in rows])
    atomic_bytes(folder / f"{SUSPECTS}.csv", text.getvalue().encode())
    atomic_bytes(folder / REPORT_FILE, page(title, lead, sections).encode())
    return folder / REPORT_FILE


def picture_of(suspect: Suspect, index: DetectionIndex, inspect: Inspect) -> bytes:
    """A suspect as a JPEG: the crop, and beside it where the decoder looked, if the model records that.

    Raises:
        ImageError: the image cannot be used.
    """
    image = load_image(index.path(suspect.image))
    truth = None if suspect.truth is None else corners_of(index.boxes[suspect.truth])
    crop = crop_around(image, [suspect.box] if truth is None else [suspect.box, truth])
    seen = inspect(image)
    heat = None
    if seen.has_decoder_attention:
        attention = seen.decoder_attention(_number(suspect, seen))
        heat = with_heat(crop, chosen_map(attention, layer=None, head=None))
    draw_boxes(crop, truth=truth, found=suspect.box)
    if heat is None:
        return jpeg(crop.picture)
    pair = Image.new("RGB", (2 * heat.width + _GAP, heat.height), "white")
    pair.paste(crop.picture, (0, 0))
    pair.paste(heat, (heat.width + _GAP, 0))
    return jpeg(pair)


def _number(suspect: Suspect, seen: Inspection) -> int:
    """The number of the suspect's detection in its image: the nearest in box and score."""
    apart = np.abs(seen.scored.boxes[0] - np.array(suspect.box, dtype=np.float32)).max(-1)
    scores = np.abs(seen.scored.scores[0] - suspect.score) * max(seen.size)
    return int((apart + scores).argmin())


def _figure(folder: Path, number: int, suspect: Suspect, index: DetectionIndex, inspect: Inspect) -> Markup | None:
    """The picture, also as a file; None where its image cannot be used any more."""
    try:
        data = picture_of(suspect, index, inspect)
    except ImageError:
        return None
    atomic_bytes(folder / SUSPECTS / f"{suspect.kind} {number:02}.jpg", data)
    return picture(data, _caption(suspect, index))


def _caption(suspect: Suspect, index: DetectionIndex) -> str:
    text = f"{index.class_names[suspect.label]} {suspect.score:.2f}"
    if suspect.truth is not None:
        text += f", labelled {index.class_names[int(index.labels[suspect.truth])]}, IoU {suspect.overlap:.2f}"
    return f"{text} · {index.relative_path(suspect.image)}"


def _row(suspect: Suspect, index: DetectionIndex) -> list[object]:
    box = [f"{value:.1f}" for value in suspect.box]
    label: list[object] = [""] * 5
    if suspect.truth is not None:
        true_box = [f"{value:.1f}" for value in corners_of(index.boxes[suspect.truth])]
        label = [index.class_names[int(index.labels[suspect.truth])], *true_box]
    own = index.own_id(suspect.image), index.relative_path(suspect.image), index.class_names[suspect.label]
    overlap = "" if suspect.truth is None else f"{suspect.overlap:.3f}"
    return [suspect.kind, f"{suspect.rank:.4f}", *own, f"{suspect.score:.4f}", *box, *label, overlap]
