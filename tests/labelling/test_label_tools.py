"""What `siamdetr label` writes, opened by the label tools' own readers.

They live in an environment of their own (`make labels`), because they want another OpenCV than ours.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_sets import write_image
from helpers.paths import ROOT

from siamdetr.labelling.bands import Bands
from siamdetr.labelling.folder import write_prelabels
from siamdetr.labelling.prelabels import Classes, Prelabel

PYTHON = ROOT / "build" / "labels-venv" / "bin" / "python"
needs_tools = pytest.mark.skipif(
    not PYTHON.exists(), reason="datumaro and label-studio-sdk are not installed: make labels"
)
ROWS = {"a": [(20, 10, 35, 22, 0, 0.9), (1, 2, 10, 12, 1, 0.5)], "b": [], "c": [(0, 0, 60, 40, 1, 0.8)]}
READ = """
import json, sys
from datumaro.components.dataset import Dataset
found = Dataset.import_from(sys.argv[1], sys.argv[2])
names = [label.name for label in next(iter(found.categories().values()))]
print(json.dumps({
    item.id: [[names[box.label], *box.points] for box in item.annotations if box.type.name == "bbox"] for item in found
}))
"""
VALIDATE = """
import json, sys
from label_studio_sdk.label_interface import LabelInterface
interface = LabelInterface(open(sys.argv[1] + "/label_config.xml", encoding="utf-8").read())
tasks = json.load(open(sys.argv[1] + "/tasks.json", encoding="utf-8"))
print(json.dumps([
    interface.validate_task({"data": task["data"]}) and all(map(interface.validate_prediction, task["predictions"]))
    for task in tasks
]))
"""


def written(folder: Path, to: str) -> Path:
    found = []
    for n, (name, rows) in enumerate(ROWS.items()):
        source = write_image(folder / "photos" / f"{name}.png", seed=n)
        table = np.array(rows, dtype=np.float32).reshape(-1, 6)
        bands = tuple(Bands(0.7, 0.3).of(table[:, 5]))
        labels = table[:, 4].astype(np.int64)
        found.append(Prelabel(source, source.name, (40, 60), table[:, :4], labels, table[:, 5], bands))
    write_prelabels(folder / "out", found, Classes(("cat", "dog"), (7, 3)), to=to)
    return folder / "out"


def answer(program: str, *arguments: object) -> Any:
    command = [PYTHON, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@needs_tools
@pytest.mark.parametrize("to", ["coco", "yolo", "voc", "cvat"])
def test_datumaro_reads_images_classes_and_boxes(to: str, tmp_path: Path) -> None:
    found = answer(READ, written(tmp_path, to), to)
    assert sorted(found) == ["a", "b", "c"]  # the empty image is kept
    for name, rows in ROWS.items():
        boxes = sorted(found[name], key=lambda box: -box[3])
        wanted = sorted(rows, key=lambda row: -row[2])
        assert [box[0] for box in boxes] == [("cat", "dog")[int(row[4])] for row in wanted]
        for box, row in zip(boxes, wanted, strict=True):
            # datumaro takes VOC's corners, which count pixels from 1, as they are
            assert box[1:] == pytest.approx(row[:4], abs=1.01 if to == "voc" else 0.01)


@needs_tools
def test_label_studios_sdk_accepts_interface_tasks_and_predictions(tmp_path: Path) -> None:
    assert answer(VALIDATE, written(tmp_path, "label-studio")) == [True, True, True]
