"""Pre-labels: their bands, the files of every labelling tool read back, and the choice of next images."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import supervision as sv
from helpers.data_sets import write_image
from helpers.tiny_models import NAMES, tiny_model
from PIL import Image
from pycocotools.coco import COCO

from siamdetr.data.readers.recognise import open_dataset
from siamdetr.errors import DataError, OutputError
from siamdetr.evaluation.thresholds import ThresholdCurve
from siamdetr.inference.features import features_of_files
from siamdetr.inference.predict_files import Failed
from siamdetr.labelling.bands import Bands, choose_bands
from siamdetr.labelling.contact_sheet import contact_sheet
from siamdetr.labelling.folder import count_bands, write_prelabels
from siamdetr.labelling.formats import WRITERS
from siamdetr.labelling.next_images import choose_next, uncertainty_of
from siamdetr.labelling.prelabels import Classes, Prelabel, classes_of, prelabel

CLASSES = Classes(("cat", "dog"), (7, 3))


def one(source: Path, *rows: tuple[float, float, float, float, int, float], name: str | None = None) -> Prelabel:
    """Rows of corners, label and score; sure from .7."""
    table = np.array(rows, dtype=np.float32).reshape(-1, 6)
    bands = Bands(0.7, 0.3).of(table[:, 5])
    name = name or source.name
    return Prelabel(source, name, (40, 60), table[:, :4], table[:, 4].astype(np.int64), table[:, 5], tuple(bands))


@pytest.fixture
def prelabels(tmp_path: Path) -> list[Prelabel]:
    files = [write_image(tmp_path / "photos" / f"{name}.png", seed=n) for n, name in enumerate("abc")]
    return [
        one(files[0], (20, 10, 35, 22, 0, 0.9), (1, 2, 10, 12, 1, 0.5)),
        one(files[1]),
        one(files[2], (0, 0, 60, 40, 1, 0.8)),
    ]


@pytest.mark.parametrize("to", ["coco", "yolo", "voc"])
def test_what_is_written_is_read_as_it_was(tmp_path: Path, prelabels: list[Prelabel], to: str) -> None:
    folder = tmp_path / "out"
    write_prelabels(folder, prelabels, CLASSES, to=to)
    index = open_dataset(folder, split="train")
    assert len(index) == 3  # the empty image is kept
    assert set(index.class_names) == {"cat", "dog"}
    for i in range(3):
        wanted = prelabels[[Path(p.name).stem for p in prelabels].index(Path(index.relative_path(i)).stem)]
        assert index.boxes_of(i) == pytest.approx(wanted.boxes, abs=0.51 if to == "voc" else 0.01)
        names = [index.class_names[label] for label in index.labels_of(i)]
        assert names == [CLASSES.names[label] for label in wanted.labels]
    if to == "coco":
        assert dict(zip(index.class_names, index.category_ids, strict=True)) == {"cat": 7, "dog": 3}


def test_pycocotools_reads_the_coco_file(tmp_path: Path, prelabels: list[Prelabel], capsys: Any) -> None:
    coco = COCO(str(write_prelabels(tmp_path / "out", prelabels, CLASSES, to="coco")))
    assert len(coco.getImgIds()) == 3
    bands = [annotation["band"] for annotation in coco.loadAnns(coco.getAnnIds())]
    assert bands == ["sure", "look", "sure"]


def test_supervision_reads_the_yolo_and_voc_files(tmp_path: Path, prelabels: list[Prelabel]) -> None:
    yolo, voc = tmp_path / "yolo", tmp_path / "voc"
    write_prelabels(yolo, prelabels, CLASSES, to="yolo")
    write_prelabels(voc, prelabels, CLASSES, to="voc")
    read = [
        sv.DetectionDataset.from_yolo(str(yolo / "images"), str(yolo / "labels"), str(yolo / "data.yaml")),
        sv.DetectionDataset.from_pascal_voc(str(voc / "JPEGImages"), str(voc / "Annotations")),
    ]
    for dataset in read:
        assert sorted(len(found) for found in dataset.annotations.values()) == [0, 1, 2]


def test_label_studio_tasks_hold_percentages_scores_and_bands(tmp_path: Path, prelabels: list[Prelabel]) -> None:
    path = write_prelabels(tmp_path / "out", prelabels, CLASSES, to="label-studio")
    tasks = json.loads(path.read_text())
    assert [task["data"]["image"] for task in tasks] == [f"/data/local-files/?d=out/images/{n}.png" for n in "abc"]
    first = tasks[0]["predictions"][0]["result"][0]
    assert first["value"] == {
        "x": pytest.approx(100 / 3),
        "y": 25.0,
        "width": 25.0,
        "height": 30.0,
        "rotation": 0,
        "rectanglelabels": ["cat"],
    }
    assert (first["score"], first["meta"]["text"], first["original_width"]) == (0.9, ["sure"], 60)
    assert tasks[1]["predictions"][0]["result"] == []
    config = ElementTree.parse(tmp_path / "out" / "label_config.xml").getroot()
    assert [label.get("value") for label in config.iter("Label")] == ["cat", "dog"]


def test_cvat_boxes_bear_score_and_band(tmp_path: Path, prelabels: list[Prelabel]) -> None:
    path = write_prelabels(tmp_path / "out", prelabels, CLASSES, to="cvat")
    root = ElementTree.parse(path).getroot()
    images = root.findall("image")
    assert [(image.get("name"), len(image)) for image in images] == [("a.png", 2), ("b.png", 0), ("c.png", 1)]
    box = images[0][0]
    assert [box.get(key) for key in ("label", "xtl", "ytl", "xbr", "ybr")] == [
        "cat",
        "20.00",
        "10.00",
        "35.00",
        "22.00",
    ]
    assert {entry.get("name"): entry.text for entry in box} == {"score": "0.9000", "band": "sure"}


@pytest.mark.parametrize("to", list(WRITERS))
def test_class_names_of_every_kind_survive(tmp_path: Path, to: str) -> None:
    names = ('<b>"cat" & dog</b>', "größer, älter: ja", "007", "no")
    source = write_image(tmp_path / "p.png")
    write_prelabels(tmp_path / "out", [one(source, (1, 1, 9, 9, 3, 0.9))], Classes(names, (1, 2, 3, 4)), to=to)
    if to in ("coco", "yolo"):
        assert open_dataset(tmp_path / "out", split="train").class_names == names


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, prelabels: list[Prelabel]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels.txt").write_text("mine")
    with pytest.raises(OutputError, match="there is something here already; name a new folder"):
        write_prelabels(tmp_path / "out", prelabels, CLASSES, to="coco")
    assert (tmp_path / "out" / "labels.txt").read_text() == "mine"


def test_an_unknown_format_is_refused(tmp_path: Path, prelabels: list[Prelabel]) -> None:
    with pytest.raises(DataError, match="--to: got 'xls', expected one of coco, yolo, voc, label-studio, cvat"):
        write_prelabels(tmp_path / "out", prelabels, CLASSES, to="xls")


def test_the_table_and_the_counts_tell_bands(tmp_path: Path, prelabels: list[Prelabel]) -> None:
    write_prelabels(tmp_path / "out", prelabels, CLASSES, to="yolo")
    rows = (tmp_path / "out" / "prelabels.csv").read_text().splitlines()
    assert [row.split(",")[2] for row in rows] == ["band", "look", "empty", "sure"]
    assert count_bands(prelabels) == {
        "sure boxes": 2,
        "look boxes": 1,
        "look images": 1,
        "empty images": 1,
        "sure images": 1,
    }


def test_names_in_the_table_are_no_formulas(tmp_path: Path, prelabels: list[Prelabel]) -> None:
    named = dataclasses.replace(prelabels[0], name="=cmd|'calc'!A1.png")
    write_prelabels(tmp_path / "out", [named], CLASSES, to="yolo")
    with (tmp_path / "out" / "prelabels.csv").open(newline="") as file:
        assert list(csv.reader(file))[1][0] == "'=cmd|'calc'!A1.png"


def test_images_of_one_name_get_names_of_their_own_and_bad_files_do_not_stop_the_others(tmp_path: Path) -> None:
    files = [write_image(tmp_path / folder / "x.png", seed=n, size=(90, 70)) for n, folder in enumerate("ab")]
    files.insert(1, tmp_path / "bad.png")
    files[1].write_bytes(b"not an image")
    model = tiny_model()
    found = list(prelabel(model, files, Bands(0.9, 0.0), batch_size=2))
    assert [one.name for one in found if isinstance(one, Prelabel)] == ["x.png", "x-2.png"]
    assert [one.file.name for one in found if isinstance(one, Failed)] == ["bad.png"]
    whole = model.predict(files[2], threshold=0.0)
    assert isinstance(whole, sv.Detections)
    assert isinstance(found[2], Prelabel)
    assert found[2].boxes == pytest.approx(whole.xyxy, abs=1e-3)
    assert found[2].size == (70, 90)


def test_classes_keep_the_data_sets_ids_and_objects_have_none() -> None:
    assert classes_of(tiny_model()) == Classes(NAMES, (1, 5, 9))
    assert classes_of(tiny_model(), objects=True) == Classes(("object",), (1,))


def test_objects_drops_the_classes(tmp_path: Path) -> None:
    file = write_image(tmp_path / "x.png", size=(90, 70))
    (found,) = prelabel(tiny_model(), [file], Bands(0.9, 0.0), objects=True)
    assert isinstance(found, Prelabel)
    assert len(found.labels)
    assert not found.labels.any()


@pytest.mark.parametrize(("sure", "look"), [(0.2, 0.5), (1.2, 0.5), (0.5, -0.1)])
def test_bands_out_of_order_are_refused(sure: float, look: float) -> None:
    with pytest.raises(ValueError, match="expected 0 <= look <= sure <= 1"):
        Bands(sure, look)


def test_bands_come_from_precision() -> None:
    thresholds = np.array([0.9, 0.8, 0.6, 0.4, 0.2])
    precision = np.array([1.0, 0.95, 0.7, 0.4, 0.1])
    curve = ThresholdCurve("all classes", 10, thresholds, precision, precision)
    assert choose_bands(curve) == Bands(sure=0.8, look=0.4)
    poor = ThresholdCurve("all classes", 10, thresholds, precision / 2, precision)
    assert choose_bands(poor) == Bands(sure=1.0, look=0.6)
    nothing = ThresholdCurve("all classes", 10, thresholds[:0], precision[:0], precision[:0])
    assert choose_bands(nothing) == Bands(sure=1.0, look=1.0)


def test_the_next_images_are_unsure_and_unlike_each_other() -> None:
    features = np.array([[1, 0, 0], [1, 0, 0.0001], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    chosen = choose_next(features, [0.9, 1.0, 0.5, 0.2], 4)
    assert [candidate.position for candidate in chosen] == [1, 2, 3]  # 0 is the double of 1
    labelled = np.array([[0, 5.0, 0]], dtype=np.float32)
    assert [c.position for c in choose_next(features, [0.9, 1.0, 0.5, 0.2], 2, labelled=labelled)] == [1, 3]


def test_uncertainty_is_that_of_the_most_doubtful_box() -> None:
    assert uncertainty_of(np.array([0.95, 0.5, 0.1], dtype=np.float32)) == 1.0
    assert uncertainty_of(np.zeros(0, dtype=np.float32)) == 0.0
    with pytest.raises(ValueError, match="got 2 images and 1 uncertainties"):
        choose_next(np.ones((2, 3), dtype=np.float32), [0.5], 1)


def test_features_of_a_file_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    sizes = [(90, 70), (90, 70), (64, 96)]
    files = [write_image(tmp_path / f"{n}.png", seed=n, size=size) for n, size in enumerate(sizes)]
    predictor = tiny_model().predictor
    together = features_of_files(predictor, files, batch_size=3)
    alone = np.concatenate([features_of_files(predictor, [file]) for file in files])
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_contact_sheet_has_room_for_all_pictures() -> None:
    sheet = contact_sheet(
        [(Image.new("RGB", (50, 400), "red"), f"{n}. a name that is much too long.jpg") for n in range(7)]
    )
    assert sheet.size == (5 * 212 + 12, 2 * 237 + 12)
    with pytest.raises(ValueError, match="got no pictures"):
        contact_sheet([])
