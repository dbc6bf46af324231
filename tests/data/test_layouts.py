"""Common layouts: each is recognised, its files are read, and unread files are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.data_sets import (
    HEIGHT,
    WIDTH,
    coco_document,
    voc_object,
    voc_xml,
    write_coco,
    write_image,
    write_voc,
    write_yolo,
)

from siamdetr.data.doctor import diagnose
from siamdetr.data.index import require_labels
from siamdetr.data.readers.recognise import available_splits, find_source, open_dataset
from siamdetr.errors import DataError

ROW = "0 0.5 0.5 0.5 0.5\n"


def boxes_of_all(root: Path) -> dict[str, tuple[int, int]]:
    """Split -> (images, boxes)."""
    source = find_source(root)
    found = {name: source.open(name) for name in source.splits}
    return {name: (len(index), index.num_boxes) for name, index in found.items()}


# --- COCO ------------------------------------------------------------------------------------------------------------


def coco_in(root: Path, json_at: str, images_at: str, names: Callable[[str], str] = lambda name: name) -> Path:
    """Three images in `images_at`, and their annotations in `json_at`, which names them as `names` says."""
    document = coco_document()
    for entry in document["images"]:
        write_image(root / images_at / entry["file_name"], seed=entry["id"])
        entry["file_name"] = names(entry["file_name"])
    file = root / json_at
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))
    return root


@pytest.mark.parametrize(
    ("json_at", "images_at"),
    [
        ("labels.json", "data"),
        ("train/labels.json", "train/data"),
        ("annotations/instances_default.json", "images"),
        ("annotations.json", "pictures of 2024"),
        ("train/annotations.json", "train/images"),
        ("result.json", "images"),
        ("train/_annotations.coco.json", "train"),
    ],
)
def test_coco_files_are_found_with_their_images(json_at: str, images_at: str, tmp_path: Path) -> None:
    coco_in(tmp_path, json_at, images_at)
    assert list(boxes_of_all(tmp_path).values()) == [(3, 6)]
    assert diagnose(tmp_path).clean


@pytest.mark.parametrize(
    "names",
    [
        lambda name: f"C:\\Users\\me\\data\\{name}",
        lambda name: f"images\\{name}",
        lambda name: f"/home/somebody/set/{name}",
        lambda name: f"http://images.example.org/train2017/{name}?size=full",
        lambda name: f"file:///data/{name}",
        lambda name: f"./{name}",
        lambda name: name.upper(),
    ],
    ids=["windows", "backslash", "absolute", "address", "file-address", "dot", "upper-case"],
)
def test_names_from_other_machines_are_found(names: Callable[[str], str], tmp_path: Path) -> None:
    coco_in(tmp_path, "annotations/instances_train.json", "train", names)
    index = open_dataset(tmp_path)
    assert (len(index), index.num_boxes, index.problems) == (3, 6, ())
    assert index.relative_path(1) == "train/002.jpg"


def test_folders_that_repeat_names_are_kept_apart(tmp_path: Path) -> None:
    def numbered(name: str) -> str:
        return f"camera{name[2]}/frame.jpg"

    document = coco_document()
    for entry in document["images"]:
        entry["file_name"] = numbered(entry["file_name"])
        write_image(tmp_path / "images" / entry["file_name"], seed=entry["id"])
        entry["file_name"] = f"D:\\set\\{entry['file_name']}".replace("/", "\\")
    (tmp_path / "all.json").write_text(json.dumps(document))
    index = open_dataset(tmp_path)
    assert [index.relative_path(i) for i in range(3)] == [f"images/camera{k}/frame.jpg" for k in (1, 2, 3)]


@pytest.mark.parametrize("key", ["coco_url", "flickr_url"])
def test_lvis_names_its_images_by_address(key: str, tmp_path: Path) -> None:
    document = coco_document()
    write_coco(tmp_path, document)
    for entry in document["images"]:
        entry[key] = f"http://images.example.org/train2017/{entry.pop('file_name')}"
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(document))
    assert boxes_of_all(tmp_path) == {"train": (3, 6)}


OUTLINES = {
    "polygon": [[10, 5, 30, 5, 30, 25, 10, 25]],
    "two parts": [[10, 5, 12, 5, 12, 8], [20, 20, 30, 20, 30, 25]],
    "flat polygon": [10, 5, 30, 5, 30, 25],
    "counts": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * 10 + 5, *([20, 20] * 19), 20, HEIGHT * 30 - 5 - 20]},
}


@pytest.mark.parametrize("outline", OUTLINES.values(), ids=OUTLINES)
@pytest.mark.parametrize("box", ["absent", None, []])
def test_objects_with_an_outline_alone_get_its_bounds(outline: object, box: object, tmp_path: Path) -> None:
    document = coco_document(1)
    for annotation in document["annotations"]:
        annotation["segmentation"] = outline
        del annotation["bbox"]
        if box != "absent":
            annotation["bbox"] = box
    write_coco(tmp_path, document)
    assert open_dataset(tmp_path).boxes[0].tolist() == [10, 5, 30, 25]


def test_a_compressed_run_length_code_has_bounds_too(tmp_path: Path) -> None:
    from pycocotools import mask

    pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    pixels[5:25, 10:30] = 1
    code = mask.encode(pixels)
    document = coco_document(1)
    document["annotations"] = document["annotations"][:1]
    del document["annotations"][0]["bbox"]
    document["annotations"][0]["segmentation"] = {"size": code["size"], "counts": code["counts"].decode()}
    write_coco(tmp_path, document)
    assert open_dataset(tmp_path).boxes.tolist() == [[10, 5, 30, 25]]


def test_companion_files_of_a_mac_hide_no_layout(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    write_yolo(tmp_path / "yolo")
    write_coco(tmp_path / "coco")
    for file in (
        "voc/Annotations/._a.xml", "voc/._labels.txt", "yolo/._data.yaml", "yolo/labels/train/._a.txt",
        "coco/annotations/._instances_train.json", "coco/._x.json",
    ):  # fmt: skip
        (tmp_path / file).write_bytes(b"\0\5\26\7Mac OS X")
    flat = tmp_path / "flat"
    write_image(flat / "train" / "b.jpg")
    (flat / "train" / "b.xml").write_text(voc_xml("b"))
    (flat / "train" / "._b.xml").write_bytes(b"\0\5\26\7Mac OS X")
    write_image(flat / "__MACOSX" / "train" / "._b.jpg")
    write_image(flat / "train" / "@eaDir" / "b.jpg" / "SYNOPHOTO_THUMB_XL.jpg")
    for name, kind in (("voc", "voc"), ("yolo", "yolo"), ("coco", "coco"), ("flat", "voc")):
        assert find_source(tmp_path / name).format == kind
        assert diagnose(tmp_path / name).clean, diagnose(tmp_path / name).problems


# --- PASCAL VOC ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotations", "images"),
    [("annotations", "images"), ("xml", "img"), ("Annotations", "photos"), ("labels", "pictures"), ("ann", "JPGs")],
)
def test_voc_folders_may_have_other_names(annotations: str, images: str, tmp_path: Path) -> None:
    write_image(tmp_path / images / "a.jpg")
    (tmp_path / annotations).mkdir()
    (tmp_path / annotations / "a.xml").write_text(voc_xml("a"))
    assert boxes_of_all(tmp_path) == {"all": (1, 2)}


def test_voc_images_of_one_stem_in_several_folders_are_kept_apart(tmp_path: Path) -> None:
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for k in range(4):
        stem = f"cam{k % 2}/frame_{k // 2}"
        write_image(tmp_path / "JPEGImages" / f"{stem}.jpg", seed=k)
        file = tmp_path / "Annotations" / f"{stem}.xml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(voc_xml(stem, voc_object("cat", 1, 1, 10 + k, 10)))
        lists["train" if k < 3 else "val"].append(stem)
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    for name, stems in lists.items():
        (tmp_path / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(stems))
    train = open_dataset(tmp_path, split="train")
    assert {train.relative_path(i): int(train.boxes_of(i)[0, 2]) for i in range(3)} == {
        "JPEGImages/cam0/frame_0.jpg": 10,
        "JPEGImages/cam1/frame_0.jpg": 11,
        "JPEGImages/cam0/frame_1.jpg": 12,
    }
    assert diagnose(tmp_path).clean


def test_several_years_of_voc_are_splits_of_their_own(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOC2007")
    assert available_splits(tmp_path) == ("train", "val")
    write_voc(tmp_path / "VOC2012")
    assert set(find_source(tmp_path).splits) == {
        f"{year}/{name}" for year in ("VOC2007", "VOC2012") for name in ("train", "val")
    }


def test_names_in_a_list_may_have_spaces_endings_and_folders(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": ["my photo 1", "b", "c"]})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("my photo 1\nb.jpg\nJPEGImages/c.jpg\n")
    assert boxes_of_all(tmp_path) == {"train": (3, 6)}


def test_an_xml_file_finds_its_image_by_the_name_in_it(tmp_path: Path) -> None:
    write_image(tmp_path / "IMG_7.JPG")
    (tmp_path / "label7.xml").write_text(voc_xml("img_7"))
    assert boxes_of_all(tmp_path) == {"all": (1, 2)}
    write_image(tmp_path / "label7.png", seed=1)
    write_image(tmp_path / "label7.bmp", seed=2)
    (tmp_path / "label7.xml").write_text(voc_xml("x").replace("x.jpg", "label7.bmp"))
    assert open_dataset(tmp_path).relative_path(0) == "label7.bmp"


def test_xml_of_other_programs_is_not_taken_for_voc(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    (tmp_path / "annotations.xml").write_text("<annotations><image name='a.jpg'><box xtl='1'/></image></annotations>")
    assert find_source(tmp_path).format == "folder"
    (problem,) = diagnose(tmp_path).problems
    assert (problem.kind, problem.file) == ("unread-labels", "annotations.xml")


# --- YOLO ------------------------------------------------------------------------------------------------------------


def yolo_without_yaml(root: Path, *, images: str, labels: str) -> Path:
    for name in ("a", "b"):
        write_image(root / images / f"{name}.jpg", seed=ord(name))
        (root / labels).mkdir(parents=True, exist_ok=True)
        (root / labels / f"{name}.txt").write_text(ROW)
    return root


@pytest.mark.parametrize(
    ("images", "labels", "names"),
    [
        ("images", "labels", "classes.txt"),
        ("images", "labels", "labels/classes.txt"),
        ("images", "images", "obj.names"),
        (".", ".", "classes.txt"),
        ("train", "train", "train/_darknet.labels"),
        ("images/train", "labels/train", "classes.txt"),
    ],
)
def test_a_list_of_names_makes_label_files_readable(images: str, labels: str, names: str, tmp_path: Path) -> None:
    yolo_without_yaml(tmp_path, images=images, labels=labels)
    (tmp_path / names).write_text("cat\n")
    index = open_dataset(tmp_path)
    assert (find_source(tmp_path).format, len(index), index.num_boxes, index.class_names) == ("yolo", 2, 2, ("cat",))
    assert diagnose(tmp_path).clean


def test_darknet_s_description_is_read(tmp_path: Path) -> None:
    yolo_without_yaml(tmp_path, images="obj_train_data", labels="obj_train_data")
    (tmp_path / "obj.names").write_text("cat\n")
    (tmp_path / "obj.data").write_text("classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = b/\n")
    (tmp_path / "train.txt").write_text("data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n")
    assert boxes_of_all(tmp_path) == {"train": (2, 2)}
    assert boxes_of_all(tmp_path / "obj.data") == {"train": (2, 2)}


@pytest.mark.parametrize(
    "item", ["/content/set/images/train", "C:\\set\\images\\train", "../images/train", "train.txt"]
)
def test_paths_of_another_machine_in_a_description_are_found(item: str, tmp_path: Path) -> None:
    write_yolo(tmp_path, yaml=f"path: /content/set\ntrain: {item}\nnames: [cat, dog]\n")
    (tmp_path / "train.txt").write_text("D:\\set\\images\\train\\a.jpg\n")
    assert boxes_of_all(tmp_path) == {"train": (1, 2)}


# --- what is not read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        (["a.txt"], "YOLO's label files need"),
        (["labels/a.txt"], "YOLO's label files need"),
        (["metadata.jsonl"], "Hugging Face"),
        (["_annotations.csv"], "tables"),
        (["via_region_data.json"], "convert it to COCO"),
        (["a.json"], "convert it to COCO"),
        (["gt/gt.txt"], "YOLO's label files need"),
        (["train.parquet"], "tables"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_labels_that_no_reader_takes_are_named_by_doctor_and_finetune(
    files: list[str], remedy: str, tmp_path: Path
) -> None:
    write_image(tmp_path / "a.jpg")
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("0 .5 .5 .1 .1\n")
    diagnosis = diagnose(tmp_path)
    assert [(problem.kind, problem.file) for problem in diagnosis.problems] == [("unread-labels", files[0])]
    assert remedy in diagnosis.problems[0].what
    assert not diagnosis.clean
    with pytest.raises(DataError, match=r"not one labelled box.*1 x file that may hold labels, which no reader takes"):
        require_labels(open_dataset(tmp_path))


def test_labels_in_the_wrong_folder_are_named(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    shutil.move(tmp_path / "labels", tmp_path / "labels_of_2024")
    diagnosis = diagnose(tmp_path)
    assert {problem.file for problem in diagnosis.problems if problem.kind == "unread-labels"} == {
        "labels_of_2024/train/a.txt",
        "labels_of_2024/val/b.txt",
    }
    with pytest.raises(DataError, match="2 x file that may hold labels"):
        require_labels(open_dataset(tmp_path))


def test_a_folder_that_was_asked_for_as_one_has_no_unread_labels(tmp_path: Path) -> None:
    write_voc(tmp_path)
    assert diagnose(tmp_path, format="folder").clean
    assert open_dataset(tmp_path, format="folder").problems == ()


@pytest.mark.parametrize("name", ["b.heic", "b.HEIF", "b.dng", "b.jxl"])
def test_pictures_in_other_formats_are_counted(name: str, tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    (tmp_path / name).write_bytes(b"?")
    index = open_dataset(tmp_path)
    assert len(index) == 1
    assert [(problem.kind, problem.file) for problem in index.problems] == [("foreign-image", name)]


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".avif", ".JPG", ".jpx", ".tga"])
def test_every_layout_reads_every_ending_that_is_decoded(ending: str, tmp_path: Path) -> None:
    form = {".avif": "AVIF", ".jpx": "JPEG2000", ".tga": "TGA"}.get(ending, "JPEG")
    for folder in ("plain", "yolo/images/train", "voc/JPEGImages", "coco/train"):
        write_image(tmp_path / folder / f"a{ending}", format=form)
    (tmp_path / "yolo/labels/train").mkdir(parents=True)
    (tmp_path / "yolo/labels/train/a.txt").write_text(ROW)
    (tmp_path / "yolo/data.yaml").write_text("train: images/train\nnames: [cat]\n")
    (tmp_path / "voc/Annotations").mkdir()
    (tmp_path / "voc/Annotations/a.xml").write_text(voc_xml("a"))
    document = coco_document(1)
    document["images"][0]["file_name"] = f"a{ending}"
    (tmp_path / "coco/all.json").write_text(json.dumps(document))
    for name in ("plain", "yolo", "voc", "coco"):
        assert len(open_dataset(tmp_path / name)) == 1
        assert diagnose(tmp_path / name).clean, diagnose(tmp_path / name).problems
