"""The doctor names every kind of defect with its file and place, and is silent on healthy data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_sets import coco_document, voc_object, voc_xml, write_coco, write_image, write_voc, write_yolo
from PIL import Image

from siamdetr.data.doctor import Diagnosis, diagnose
from siamdetr.data.problems import KINDS
from siamdetr.errors import DataError

Defect = Callable[[Path], tuple[str, str]]  # spoils a data set written to the folder; returns (file, place) to be named
DEFECTS: list[tuple[str, Defect]] = []
JSON = "annotations/instances_train.json"


def defect(kind: str) -> Callable[[Defect], Defect]:
    """Register a fixture under the kind of problem that the doctor must find in it."""

    def keep(function: Defect) -> Defect:
        DEFECTS.append((kind, function))
        return function

    return keep


def coco_with(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Writes a healthy COCO data set, then its JSON again after `change`."""
    document = coco_document()
    file = write_coco(root, document)
    change(document)
    file.write_text(json.dumps(document))


def replace_image(root: Path, data: bytes) -> tuple[str, str]:
    write_coco(root)
    (root / "train" / "002.jpg").write_bytes(data)
    return "train/002.jpg", "image 2"


# --- the data set as a whole -----------------------------------------------------------------------------------------


@defect("unreadable-annotations")
def broken_json(root: Path) -> tuple[str, str]:
    write_coco(root).write_text('{"images": [')
    return str(root), "split 'train'"


@defect("unreadable-annotations")
def broken_xml(root: Path) -> tuple[str, str]:
    write_voc(root)
    (root / "Annotations" / "b.xml").write_text("<annotation>\n<size>")
    return "Annotations/b.xml", "line 2, column 7"


@defect("unreadable-annotations")
def broken_yaml(root: Path) -> tuple[str, str]:
    write_yolo(root, yaml="names: [")
    return str(root), ""


@defect("unreadable-annotations")
def binary_label_file(root: Path) -> tuple[str, str]:
    write_yolo(root)
    (root / "labels" / "train" / "a.txt").write_bytes(b"\xff\xfe\x00")
    return "labels/train/a.txt", ""


@defect("bad-category")
def category_without_name(root: Path) -> tuple[str, str]:
    coco_with(root, lambda document: document["categories"].append({"id": 3}))
    return JSON, "category number 2"


@defect("duplicate-category")
def category_name_twice(root: Path) -> tuple[str, str]:
    coco_with(root, lambda document: document["categories"].append({"id": 3, "name": "cat"}))
    return JSON, "category 3"


@defect("ambiguous-category")
def category_id_twice(root: Path) -> tuple[str, str]:
    coco_with(root, lambda document: document["categories"].append({"id": 2, "name": "cow"}))
    return JSON, "category 2"


@defect("class-count-mismatch")
def wrong_nc(root: Path) -> tuple[str, str]:
    write_yolo(root, yaml="train: images/train\nval: images/val\nnc: 3\nnames: [cat, dog]\n")
    return "data.yaml", "nc"


@defect("category-gap")
def gap_in_category_ids(root: Path) -> tuple[str, str]:
    coco_with(root, lambda document: document["categories"].append({"id": 9, "name": "cow"}))
    return JSON, "categories"


@defect("empty-class")
def class_without_boxes(root: Path) -> tuple[str, str]:
    coco_with(root, lambda document: document["categories"].append({"id": 3, "name": "cow"}))
    return "split 'train'", "class 'cow'"


@defect("xyxy-as-xywh")
def corners_written_as_sizes(root: Path) -> tuple[str, str]:
    def change(document: dict[str, Any]) -> None:
        for annotation in document["annotations"]:
            x, y, w, h = annotation["bbox"]
            annotation["bbox"] = [x + 10, y + 5, x + 10 + w, y + 5 + h]

    coco_with(root, change)
    return JSON, "annotations"


# --- image entries ---------------------------------------------------------------------------------------------------


@defect("bad-image-entry")
def image_without_file_name(root: Path) -> tuple[str, str]:
    coco_with(root, lambda document: document["images"].append({"id": 9}))
    return JSON, "image number 3"


@defect("missing-image")
def image_file_gone(root: Path) -> tuple[str, str]:
    write_coco(root)
    (root / "train" / "002.jpg").unlink()
    return "train/002.jpg", "image 2"


@defect("missing-image")
def all_image_files_gone(root: Path) -> tuple[str, str]:
    write_coco(root)
    shutil.rmtree(root / "train")
    return "001.jpg", "image 1"


@defect("missing-image")
def voc_image_gone(root: Path) -> tuple[str, str]:
    write_voc(root)
    (root / "JPEGImages" / "a.jpg").unlink()
    return "JPEGImages/a.jpg", ""


@defect("ambiguous-image")
def image_id_twice(root: Path) -> tuple[str, str]:
    coco_with(root, lambda document: document["images"][2].update(id=1))
    return JSON, "image 1"


@defect("duplicate-image-id")
def name_listed_twice(root: Path) -> tuple[str, str]:
    write_voc(root, {"train": ["a", "b", "a"], "val": ["c"]})
    return "ImageSets/Main/train.txt", "line 3"


@defect("duplicate-image-id")
def path_listed_twice(root: Path) -> tuple[str, str]:
    write_yolo(root, yaml="train: train.txt\nval: images/val\nnames: [cat, dog]\n")
    (root / "train.txt").write_text("images/train/a.jpg\n./images/train/a.jpg\n")
    return "train.txt", "line 2"


@defect("duplicate-image-file")
def file_under_two_ids(root: Path) -> tuple[str, str]:
    coco_with(root, lambda document: document["images"][2].update(file_name="001.jpg"))
    return "train/001.jpg", "image 3"


@defect("missing-annotation")
def listed_without_xml(root: Path) -> tuple[str, str]:
    write_voc(root)
    (root / "Annotations" / "a.xml").unlink()
    return "Annotations/a.xml", ""


@defect("no-label-file")
def yolo_image_without_labels(root: Path) -> tuple[str, str]:
    write_yolo(root)
    (root / "labels" / "train" / "a.txt").unlink()
    return "images/train/a.jpg", ""


@defect("orphan-annotation")
def label_file_without_image(root: Path) -> tuple[str, str]:
    write_yolo(root)
    (root / "labels" / "train" / "old.txt").write_text("0 .5 .5 .1 .1\n")
    return "labels/train/old.txt", ""


@defect("no-objects")
def image_without_boxes(root: Path) -> tuple[str, str]:
    coco_with(root, lambda document: document.update(annotations=document["annotations"][2:]))
    return "train/001.jpg", ""


@defect("unlisted-image")
def image_without_annotation(root: Path) -> tuple[str, str]:
    write_coco(root)
    write_image(root / "train" / "extra.jpg", seed=99)
    return "train/extra.jpg", ""


@defect("ambiguous-box")
def box_of_an_id_that_two_files_have(root: Path) -> tuple[str, str]:
    coco_with(root, lambda document: document["images"][2].update(id=1))
    return JSON, "annotation 2"


@defect("ambiguous-file")
def two_names_from_another_machine_that_end_alike(root: Path) -> tuple[str, str]:
    def change(document: dict[str, Any]) -> None:
        for folder, entry in zip("aab", document["images"], strict=True):
            entry["file_name"] = f"C:\\{folder}\\{'001.jpg' if entry['id'] == 3 else entry['file_name']}"

    coco_with(root, change)
    return JSON, "image 3"


@defect("foreign-image")
def picture_of_a_phone(root: Path) -> tuple[str, str]:
    write_yolo(root)
    (root / "images" / "train" / "b.heic").write_bytes(b"ftypheic")
    return "images/train/b.heic", ""


@defect("unread-labels")
def label_files_without_names(root: Path) -> tuple[str, str]:
    write_yolo(root)
    (root / "data.yaml").unlink()
    return "labels/train/a.txt", ""


@defect("other-labels")
def table_beside_the_annotations(root: Path) -> tuple[str, str]:
    write_coco(root)
    (root / "train" / "boxes.csv").write_text("001.jpg,1,2,3,4\n")
    return "train/boxes.csv", ""


@defect("class-folders")
def classification_folders(root: Path) -> tuple[str, str]:
    write_image(root / "cat" / "a.jpg")
    write_image(root / "dog" / "b.jpg", seed=1)
    return "cat", ""


# --- boxes -----------------------------------------------------------------------------------------------------------


def box_defect(kind: str, name: str, change: dict[str, Any], place: str = "annotation 3") -> None:
    """A fixture whose second annotation (id 3) is changed."""

    def spoil(root: Path) -> tuple[str, str]:
        coco_with(root, lambda document: document["annotations"][1].update(change))
        return JSON, place

    spoil.__name__ = name
    DEFECTS.append((kind, spoil))


box_defect("malformed-box", "three_numbers", {"bbox": [1, 2, 3]})
box_defect("malformed-box", "text", {"bbox": "1 2 3 4"})
box_defect("malformed-box", "crowd_in_words", {"iscrowd": "perhaps"})
box_defect("bad-field", "area_in_words", {"area": "large"})
box_defect("outline-box", "polygon_alone", {"bbox": None, "segmentation": [[1, 2, 30, 2, 30, 20]]})
box_defect("nan-box", "nan", {"bbox": [1, float("nan"), 3, 4]})
box_defect("nan-box", "infinite", {"bbox": [1, 2, float("inf"), 4]})
box_defect("degenerate-box", "no_width", {"bbox": [1, 2, 0, 4]})
box_defect("degenerate-box", "negative_height", {"bbox": [1, 2, 5, -4]})
box_defect("outside-box", "right_of_the_image", {"bbox": [61, 2, 5, 4]})
box_defect("clipped-box", "over_the_edge", {"bbox": [50, 2, 30, 10]})
box_defect("tiny-box", "half_a_pixel", {"bbox": [50, 2, 0.5, 10]})
box_defect("unknown-category", "category_9", {"category_id": 9})
box_defect("unknown-category", "no_category", {"category_id": None})
box_defect("unknown-image", "image_77", {"image_id": 77})
box_defect("duplicate-annotation-id", "id_of_the_next", {"id": 4}, "annotation 4")
box_defect("duplicate-box", "as_the_first", {"bbox": [20.0, 10.0, 15.0, 12.0], "category_id": 1})


@defect("many-objects")
def a_tray_of_objects(root: Path) -> tuple[str, str]:
    def change(document: dict[str, Any]) -> None:
        document["annotations"] += [
            {"id": 100 + k, "image_id": 2, "category_id": 1, "bbox": [k % 50, k // 50, 5, 5]} for k in range(100)
        ]

    coco_with(root, change)
    return "train/002.jpg", "image 2"


@defect("degenerate-box")
def voc_point(root: Path) -> tuple[str, str]:
    write_voc(root)
    (root / "Annotations" / "a.xml").write_text(
        voc_xml("a", voc_object("cat", 9, 9, 20, 20) + voc_object("dog", 5, 5, 5, 5))
    )
    return "Annotations/a.xml", "object 2"


@defect("malformed-box")
def voc_box_without_numbers(root: Path) -> tuple[str, str]:
    write_voc(root)
    (root / "Annotations" / "a.xml").write_text(voc_xml("a", voc_object("cat", "", 1, 9, "x")))
    return "Annotations/a.xml", "object 1"


@defect("malformed-box")
def yolo_row_too_short(root: Path) -> tuple[str, str]:
    write_yolo(root, {"train/a": "0 .5 .5 .2 .2\n1 .5 .5\n", "val/b": "1 .5 .5 1 1\n"})
    return "labels/train/a.txt", "line 2"


@defect("not-a-fraction")
def yolo_pixels(root: Path) -> tuple[str, str]:
    write_yolo(root, {"train/a": "0 .5 .5 .2 .2\n1 30 20 10 10\n", "val/b": "1 .5 .5 1 1\n"})
    return "labels/train/a.txt", "line 2"


@defect("unknown-category")
def yolo_class_beyond_names(root: Path) -> tuple[str, str]:
    write_yolo(root, {"train/a": "0 .5 .5 .2 .2\n2 .5 .5 .1 .1\n", "val/b": "1 .5 .5 1 1\n"})
    return "labels/train/a.txt", "line 2"


# --- image files -----------------------------------------------------------------------------------------------------


@defect("empty-file")
def zero_bytes(root: Path) -> tuple[str, str]:
    return replace_image(root, b"")


@defect("empty-file")
def zero_bytes_in_yolo(root: Path) -> tuple[str, str]:
    write_yolo(root)
    (root / "images" / "train" / "a.jpg").write_bytes(b"")
    return "images/train/a.jpg", ""


@defect("corrupt-image")
def not_an_image(root: Path) -> tuple[str, str]:
    return replace_image(root, b"<html>404 Not Found</html>")


@defect("truncated-image")
def half_a_jpeg(root: Path) -> tuple[str, str]:
    data = write_image(root / "whole.jpg").read_bytes()
    return replace_image(root, data[: len(data) // 2])


@defect("truncated-image")
def half_a_png(root: Path) -> tuple[str, str]:
    data = write_image(root / "whole.png").read_bytes()
    return replace_image(root, data[: len(data) // 2])


@defect("huge-image")
def forty_two_million_pixels(root: Path) -> tuple[str, str]:
    write_coco(root)
    Image.new("1", (7000, 6000)).save(root / "train" / "002.jpg", format="PNG")
    return "train/002.jpg", "image 2"


@defect("too-large-image")
def decompression_bomb(root: Path) -> tuple[str, str]:
    write_coco(root)
    Image.new("1", (20000, 10000)).save(root / "train" / "002.jpg", format="PNG")
    return "train/002.jpg", "image 2"


@defect("size-mismatch")
def annotated_at_another_size(root: Path) -> tuple[str, str]:
    coco_with(root, lambda document: document["images"][1].update(width=120, height=80))
    return "train/002.jpg", "image 2"


def rotate(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(root / "train" / "002.jpg", seed=2, exif=exif)


@defect("exif-size-mismatch")
def annotated_before_rotation(root: Path) -> tuple[str, str]:
    write_coco(root)
    rotate(root)
    return "train/002.jpg", "image 2"


@defect("exif-rotated")
def annotated_after_rotation(root: Path) -> tuple[str, str]:
    coco_with(root, lambda document: document["images"][1].update(width=40, height=60))
    rotate(root)
    return "train/002.jpg", "image 2"


@defect("not-rgb")
def grey(root: Path) -> tuple[str, str]:
    write_coco(root)
    Image.new("L", (60, 40)).save(root / "train" / "002.jpg")
    return "train/002.jpg", "image 2"


@defect("deep-image")
def sixteen_bits(root: Path) -> tuple[str, str]:
    write_coco(root)
    Image.fromarray(np.full((40, 60), 40000, dtype=np.uint16)).save(root / "train" / "002.jpg", format="PNG")
    return "train/002.jpg", "image 2"


@defect("several-frames")
def animation(root: Path) -> tuple[str, str]:
    write_coco(root)
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "blue")]
    frames[0].save(root / "train" / "002.jpg", format="GIF", save_all=True, append_images=frames[1:])
    return "train/002.jpg", "image 2"


@defect("wrong-extension")
def png_named_jpg(root: Path) -> tuple[str, str]:
    write_coco(root)
    write_image(root / "train" / "002.jpg", seed=2, format="PNG")
    return "train/002.jpg", "image 2"


@defect("leakage")
def training_image_in_validation(root: Path) -> tuple[str, str]:
    write_coco(root)
    write_coco(root, coco_document(2, first=10), split="val")
    shutil.copy(root / "train" / "002.jpg", root / "val" / "011.jpg")
    return "val/011.jpg", "image 11"


@defect("duplicate-content")
def copied_image(root: Path) -> tuple[str, str]:
    write_coco(root)
    shutil.copy(root / "train" / "001.jpg", root / "train" / "003.jpg")
    return "train/003.jpg", "image 3"


# --- the claims ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "spoil"), DEFECTS, ids=[f"{kind}-{spoil.__name__}" for kind, spoil in DEFECTS])
def test_the_defect_is_named_with_its_file_and_place(kind: str, spoil: Defect, tmp_path: Path) -> None:
    file, place = spoil(tmp_path)
    diagnosis = diagnose(tmp_path, workers=2)
    found = [(problem.kind, problem.file, problem.where) for problem in diagnosis.problems]
    assert (kind, file, place) in found
    assert all(str(problem).endswith(KINDS[problem.kind].action) for problem in diagnosis.problems)
    json.loads(diagnosis.to_json())


@pytest.mark.parametrize("seed", range(60))
def test_nonsense_anywhere_in_the_json_raises_nothing(seed: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(seed)
    nonsense = [None, -1, 10**400, 1e308, float("nan"), "", "\x00", "\ud800", [], {}, [None] * 4, True, "../..", 2.5]

    def change(document: dict[str, Any]) -> None:
        for _ in range(4):
            entries = document[("images", "annotations", "categories")[generator.integers(3)]]
            place = int(generator.integers(len(entries)))
            value = nonsense[generator.integers(len(nonsense))]
            if isinstance(entries[place], dict) and generator.random() < 0.9:
                entries[place][str(generator.choice(list(entries[place]) or ["id"]))] = value
            else:
                entries[place] = value

    coco_with(tmp_path, change)
    json.loads(diagnose(tmp_path).to_json())


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e30", "", "x", "9" * 400])
def test_nonsense_numbers_in_xml_raise_nothing(value: str, tmp_path: Path) -> None:
    write_voc(tmp_path)
    text = voc_xml("a", voc_object("cat", value, 1, 9, 9) + voc_object("cat", 1, 1, 9, value))
    (tmp_path / "Annotations" / "a.xml").write_text(text.replace("<width>60", f"<width>{value}"))
    assert any(problem.file == "Annotations/a.xml" for problem in diagnose(tmp_path).problems)


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e30", "x", "9" * 400])
def test_nonsense_numbers_in_yolo_rows_raise_nothing(value: str, tmp_path: Path) -> None:
    write_yolo(
        tmp_path, {"train/a": f"{value} .5 .5 .1 .1\n0 {value} .5 .1 .1\n0 .1 .1 .2 {value} .3 .3\n", "val/b": ""}
    )
    places = {problem.where for problem in diagnose(tmp_path).problems if problem.file == "labels/train/a.txt"}
    assert places == {"line 1", "line 2", "line 3"}


def test_every_kind_of_problem_has_a_defect() -> None:
    assert {kind for kind, _ in DEFECTS} == set(KINDS)
    assert len(KINDS) >= 25


@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo], ids=["coco", "voc", "yolo"])
def test_healthy_data_has_no_problem_at_all(write: Callable[[Path], Path], tmp_path: Path) -> None:
    write(tmp_path)
    assert diagnose(tmp_path).problems == ()


def test_a_healthy_folder_of_images_has_no_problem(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "b.png")
    diagnosis = diagnose(tmp_path)
    assert (diagnosis.format, diagnosis.problems) == ("folder", ())


def test_splits_that_share_folders_raise_no_false_alarm(tmp_path: Path) -> None:
    for split, first in (("train", 1), ("val", 10)):
        file = write_coco(tmp_path, coco_document(2, first=first), split=split)
        (tmp_path / "images").mkdir(exist_ok=True)
        for image in (tmp_path / split).iterdir():
            image.rename(tmp_path / "images" / image.name)
        assert file.is_file()
    assert diagnose(tmp_path).problems == ()


def test_the_doctor_finds_the_two_bad_boxes_of_bccd_and_nothing_else(real_data: Path) -> None:
    diagnosis = diagnose(real_data / "bccd")
    assert [(problem.kind, problem.file, problem.where) for problem in diagnosis.problems] == [
        ("degenerate-box", "Annotations/BloodImage_00338.xml", "object 13"),
        ("degenerate-box", "Annotations/BloodImage_00343.xml", "object 4"),
    ]
    assert [(split.name, split.images) for split in diagnosis.splits] == [("train", 205), ("val", 87), ("test", 72)]


def test_the_doctor_raises_no_alarm_on_coco_mini(real_data: Path) -> None:
    diagnosis = diagnose(real_data / "coco-mini")
    assert diagnosis.clean
    assert {problem.kind for problem in diagnosis.problems} == {"category-gap", "unlisted-image"}  # both are true


@pytest.fixture
def small(tmp_path: Path) -> Diagnosis:
    document = coco_document()
    document["annotations"][0] |= {"iscrowd": 1, "bbox": [0, 0, 60, 40], "area": 2400}
    document["annotations"] = document["annotations"][:4]
    write_coco(tmp_path, document)
    return diagnose(tmp_path, splits=["train"])


def test_statistics_count_images_boxes_and_classes(small: Diagnosis) -> None:
    (split,) = small.splits
    assert (split.images, split.images_without_boxes, split.boxes, split.crowds) == (3, 1, 4, 1)
    assert split.class_counts == {"cat": 2, "dog": 2}
    assert split.box_sizes == {"small": 3, "medium": 1, "large": 0}
    assert split.image_sizes == {"0-128": 3}


def test_the_report_as_json_holds_kinds_and_problems(small: Diagnosis) -> None:
    document = json.loads(small.to_json())
    assert document["counts"] == {"error": 0, "warning": 0, "info": 1}
    assert document["kinds"] == {"no-objects": 1}
    assert document["problems"][0]["file"] == "train/003.jpg"
    assert document["problems"][0]["action"] == "kept as an image without objects"


def test_progress_counts_every_image(tmp_path: Path) -> None:
    write_voc(tmp_path)
    calls: list[tuple[int, int]] = []
    diagnose(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_what_was_asked_for_and_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file or folder"):
        diagnose(tmp_path / "nowhere")
    write_voc(tmp_path)
    with pytest.raises(DataError, match="there is no split 'test'; available: train, val"):
        diagnose(tmp_path, splits=["test"])
    with pytest.raises(DataError, match="found no yolo data"):
        diagnose(tmp_path, format="yolo")


def test_an_empty_folder_is_a_finding(tmp_path: Path) -> None:
    (problem,) = diagnose(tmp_path).problems
    assert "found no images and no annotations" in problem.what
