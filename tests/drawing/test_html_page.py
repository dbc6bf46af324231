"""report.html stands alone and escapes what it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from siamdetr.drawing.html_page import Curve, Section, curve, curves_svg, page, picture, table
from siamdetr.training.run_report import write_report


def test_report_of_a_run_folder(tmp_path: Path) -> None:
    detector = {"variant": "vanilla", "backbone": "resnet50", "encoder_layers": 6, "decoder_layers": 6}
    config = {"detector": detector, "batch_size": 2, "data": {"paths": ["a<b"]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "metrics.csv").write_text("step,loss,loss_bbox,val_ap\n1,5,2,\n2,4,1,\n2,,,0.25\n")
    rows = [{"name": "<cat>", "num_boxes": 3, "ap": None}]
    evaluation = {"step": 2, "metrics": {"ap": 0.25, "ap50": 0.5}, "per_class": rows}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    for folder, name in (("pictures", "image 7.jpg"), ("attention", "image 8.jpg")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / name)
    text = write_report(tmp_path).read_text()
    assert "Finetuning of DETR on resnet50, 6+6 layers: 2 steps of 2 on a&lt;b." in text
    assert "The loss went from 5 to 4. Best AP 0.250, AP50 0.500, at step 2." in text
    assert "&lt;cat&gt;" in text
    assert "<cat>" not in text
    assert "image 7" in text
    assert "Where the decoder looked" in text
    assert "image 8" in text
    assert text.count("<svg") == 3
    assert not re.search(r'(src|href)="(?!data:|#)', text)  # nothing is fetched from anywhere


def test_report_needs_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.yaml here; is it a run folder\?"):
        write_report(tmp_path)


def test_curves_take_the_pages_colour_and_leave_out_missing_cells() -> None:
    line = curve([{"step": 1, "loss": 2.0}, {"step": 2, "val_ap": 1.0}, {"step": 3, "loss": 1.0}], "loss", "one")
    assert line == Curve("one", (1, 3), (2.0, 1.0))
    svg = curves_svg([line, Curve("two", (1, 2), (0.5, 0.25))], y_label="AP")
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert svg == curves_svg([line, Curve("two", (1, 2), (0.5, 0.25))], y_label="AP")


def test_pieces_make_a_page() -> None:
    sections = [Section("S", table(["a"], [[0.5], [None]])), Section("P", picture(b"x", "it's"), wide=True)]
    text = page("T", "lead & all", sections)
    assert "<td>0.500</td>" in text
    assert "<td>–</td>" in text
    assert "lead &amp; all" in text
    assert 'class="wide"' in text
