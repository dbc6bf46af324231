"""No command writes over what it reads, or into what the next call would read.

It is refused before the first write.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from helpers.tiny_models import tiny_model
from PIL import Image
from typer.testing import CliRunner

from siamdetr.cli.__main__ import app
from siamdetr.data.synthetic.shapes import write_synthetic


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that a command could read, which is the working folder too."""
    monkeypatch.chdir(tmp_path)
    write_synthetic(tmp_path / "data", seed=0, num_unlabelled=1, num_train=2, num_val=1, size=64)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 48), "red").save("photos/a.jpg")
    Image.new("RGB", (64, 48), "red").save("photos/b.png")
    (tmp_path / "run").mkdir()
    tiny_model().save("run/best.safetensors")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/manifest.json").write_text("{}")
    for name in ("settings.yaml", "official.pth", "classes.txt", "forest.gz", "boxes.json"):
        (tmp_path / name).write_text("1")
    return tmp_path


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


CALLS = [
    "predict run photos -o photos",
    "predict run photos -o photos/found",
    "predict run photos/a.jpg -o photos",
    "predict run . -o photos",
    "predict run . ",
    "predict run photos --json photos/a.jpg",
    "predict run photos --json run/best.safetensors",
    "predict run photos -o out --json out/a.jpg",
    "val run --data data --json data/annotations/instances_val.json",
    "val run --data data --json data/found.json",
    "val run --data data --json run/best.safetensors",
    "val run --data data -o data/report",
    "label run photos -o photos/labels",
    "doctor data --json data/annotations/instances_val.json",
    "doctor data --json data/annotations/instances_new.json",
    "doctor data --json data/instances_new.json",
    "attention run photos/a.jpg -o photos/a.jpg",
    "attention run photos/a.jpg -o ./photos/../photos/a.jpg",
    "convert official.pth --family detr -o official.pth",
    "convert official.pth --family detr --classes classes.txt -o classes.txt",
    "proposals data --method random -o data/annotations/instances_val.json",
    "proposals data --edge-model forest.gz -o forest.gz",
    "proposals data --method objectness-file --boxes boxes.json -o boxes.json",
    "benchmark run --data data -o data",
    "export run -o data --data data",
    "export run -o out --data data --trt --timing-cache out/model.onnx",
    "export run -o out --trt --timing-cache run/best.safetensors",
    "export bundle -o bundle/inner --trt",
    "export run -o repository/siamdetr --triton repository",
    "train --data photos -o photos/run --steps 1",
    "train --data . -o run2 --steps 1",
    "train --data . --steps 1",
    "train --data photos --proposals run2/best.safetensors -o run2 --steps 1",
    "finetune --data data -o data/run --steps 1",
    "finetune --data data --init run -o run --steps 1",
    "finetune --data data --config out/config.yaml -o out --steps 1",
    "study cost --data data -o data/study",
    "study cost --data data --unlabelled photos -o photos/study",
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_would_write_over_its_input_writes_nothing(call: str, place: Path) -> None:
    if "out/config.yaml" in call:
        (place / "out").mkdir()
        (place / "out/config.yaml").write_text("steps: 1\n")
    before = digests(place)
    answer = CliRunner().invoke(app, call.split())
    assert answer.exit_code != 0
    assert type(answer.exception).__name__ == "OutputError", answer.output
    assert digests(place) == before


def test_a_report_of_doctor_is_written_anew_beside_the_data(place: Path) -> None:
    for _ in range(2):
        answer = CliRunner().invoke(app, ["doctor", "data", "--json", "data/report.json"])
        assert answer.exit_code in (0, 1), answer.output
        assert not isinstance(answer.exception, ValueError)
    assert "counts" in json.loads((place / "data/report.json").read_text())


def test_an_original_beside_the_input_is_not_replaced_by_a_drawing(place: Path) -> None:
    Image.new("RGB", (64, 48), "blue").save("photos/b.jpg")
    before = digests(place / "photos")
    answer = CliRunner().invoke(app, ["predict", "run", "photos/b.png", "-o", "photos"])
    assert "photos/b.jpg in it would be written over" in str(answer.exception)
    assert digests(place / "photos") == before
