"""Odd data sets, as other tools and people make them; each one breaks some reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from helpers.data_sets import HEIGHT, WIDTH, coco_document, voc_object, voc_xml, write_coco, write_image, write_yolo

Writer = Callable[[Path], object]
ROW = "0 0.5 0.5 0.2 0.4\n"  # of a YOLO label file


def _coco(root: Path, change: Callable[[dict[str, Any]], object] = lambda document: None) -> None:
    """Train and val, five images each, with a change to both documents."""
    for split, first in (("train", 1), ("val", 11)):
        document = coco_document(5, first)
        write_coco(root, document, split=split)
        change(document)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))


def _each(key: str, **values: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for entry in document[key]:
            entry |= {name: value(entry) for name, value in values.items()}

    return change


def swapped_sizes(root: Path) -> None:
    """Width and height are those before the EXIF rotation."""
    _coco(root, _each("images", width=lambda _: HEIGHT, height=lambda _: WIDTH))


def merged_ids(root: Path) -> None:
    """Two files pasted into one: image ids repeat."""

    def change(document: dict[str, Any]) -> None:
        first = document["images"][0]["id"]
        document["images"][4]["id"] = first
        for annotation in document["annotations"][8:]:
            annotation["image_id"] = first

    _coco(root, change)


def huge_ids(root: Path) -> None:
    """Image ids are hashes."""

    def change(document: dict[str, Any]) -> None:
        _each("images", id=lambda entry: 2**62 + entry["id"])(document)
        _each("annotations", image_id=lambda entry: 2**62 + entry["image_id"])(document)

    _coco(root, change)


def text_ids(root: Path) -> None:
    """Image ids are texts."""

    def change(document: dict[str, Any]) -> None:
        _each("images", id=lambda entry: f"img-{entry['id']}")(document)
        _each("annotations", image_id=lambda entry: f"img-{entry['image_id']}")(document)

    _coco(root, change)


def one_name_twice(root: Path) -> None:
    """Two categories have one name."""
    _coco(root, _each("categories", name=lambda _: "cat"))


def called_object(root: Path) -> None:
    """A class has the name of a class-agnostic model's class."""
    _coco(root, _each("categories", name=lambda entry: "object" if entry["id"] == 1 else "dog"))


def outlines_only(root: Path) -> None:
    """Polygons and no boxes."""

    def change(document: dict[str, Any]) -> None:
        for entry in document["annotations"]:
            x, y, w, h = entry.pop("bbox")
            entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]

    _coco(root, change)


def addresses_only(root: Path) -> None:
    """LVIS: no file names, but addresses that end with them."""

    def change(document: dict[str, Any]) -> None:
        for entry in document["images"]:
            entry["coco_url"] = f"http://images.example.org/{entry.pop('file_name')}"

    _coco(root, change)


def flags_as_text(root: Path) -> None:
    """Flags and numbers are texts, and "0" means false."""
    _coco(root, _each("annotations", iscrowd=lambda entry: str(entry["category_id"] - 1), area=lambda _: "180"))


def boxes_beyond(root: Path) -> None:
    """Boxes that reach beyond the image, lie outside it, or have no area."""

    def change(document: dict[str, Any]) -> None:
        for entry, box in zip(document["annotations"], ([50, 30, 40, 40], [200, 5, 9, 9], [3, 3, 0, 7]), strict=False):
            entry["bbox"] = box

    _coco(root, change)


def damaged_files(root: Path) -> None:
    """A truncated file, an empty one, one that is no image, and a missing one."""
    _coco(root)
    files = sorted((root / "train").iterdir())
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[: len(whole) // 2])
    files[1].write_bytes(b"")
    files[2].write_bytes(b"no image")
    files[3].unlink()


def deep_pixels(root: Path) -> None:
    """Grey images with 12 bits in 16-bit files, and floating-point images."""
    for split, first in (("train", 1), ("val", 11)):
        document = coco_document(4, first)
        for number, entry in enumerate(document["images"]):
            entry["file_name"] = f"{entry['id']}.tif"
            grey = np.random.default_rng(number).integers(0, 4096, (HEIGHT, WIDTH), dtype=np.uint16)
            (root / split).mkdir(parents=True, exist_ok=True)
            pixels = grey if number % 2 else grey.astype(np.float32) / 4096
            Image.fromarray(pixels).save(root / split / entry["file_name"])
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))


def many_objects(root: Path) -> None:
    """More objects in an image than AP counts detections."""

    def change(document: dict[str, Any]) -> None:
        image = document["images"][0]["id"]
        document["annotations"] += [
            {"id": 1000 + n, "image_id": image, "category_id": 1, "bbox": [n % 15 * 3, n // 15 * 3, 2, 2], "area": 4}
            for n in range(150)
        ]

    _coco(root, change)


def a_strip(root: Path) -> None:
    """A cut-out line of a scanner among ordinary images."""

    def change(document: dict[str, Any]) -> None:
        document["images"].append({"id": 99, "file_name": "strip.png", "width": 1000, "height": 6})
        document["annotations"].append(
            {"id": 999, "image_id": 99, "category_id": 1, "bbox": [10, 1, 60, 4], "area": 240}
        )

    _coco(root, change)
    for split in ("train", "val"):
        write_image(root / split / "strip.png", size=(1000, 6))


def fiftyone_flat(root: Path) -> None:
    """data/ and labels.json."""
    write_coco(root, coco_document(5), split="data")
    (root / "annotations" / "instances_data.json").rename(root / "labels.json")
    (root / "annotations").rmdir()


def fiftyone_splits(root: Path) -> None:
    """One folder per split, with data/ and labels.json in each."""
    for split in ("train", "val"):
        fiftyone_flat(root / split)


def voc_subfolders(root: Path) -> None:
    """Images of one stem in several folders."""
    for split, stems in (("train", ("cam1/f0", "cam2/f0", "cam1/f1")), ("val", ("cam2/f1", "cam1/f2"))):
        for number, stem in enumerate(stems):
            write_image(root / "JPEGImages" / f"{stem}.jpg", seed=number)
            file = root / "Annotations" / f"{stem}.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(voc_xml(stem, voc_object("cat", 1, 1, 30, 20)))
        file = root / "ImageSets" / "Main" / f"{split}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(stems))


def yolo_pose(root: Path) -> None:
    """Rows of a class, a box and keypoints."""
    row = "0 0.5 0.5 0.2 0.4 " + "0.5 0.5 1 " * 4 + "\n"
    yaml = "train: images/train\nval: images/val\nkpt_shape: [4, 3]\nnames: [cat]\n"
    write_yolo(root, {"train/a": row, "train/b": row + row, "val/c": row}, yaml)


def yolo_names_of_yaml(root: Path) -> None:
    """Class names that YAML reads as something else."""
    yaml = "train: images/train\nval: images/val\nnames: [no, 007]\n"
    write_yolo(root, {"train/a": ROW + "1" + ROW[1:], "val/c": ROW}, yaml)


def yolo_label_studio(root: Path) -> None:
    """No data.yaml, but classes.txt."""
    for name in "abc":
        write_image(root / "images" / f"{name}.jpg", seed=ord(name))
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{name}.txt").write_text(ROW)
    (root / "classes.txt").write_text("cat\n")


def yolo_darknet(root: Path) -> None:
    """obj.names, and labels beside the images."""
    for name in "abc":
        write_image(root / "obj_train_data" / f"{name}.jpg", seed=ord(name))
        (root / "obj_train_data" / f"{name}.txt").write_text(ROW)
    (root / "obj.names").write_text("cat\n")
    (root / "obj.data").write_text("classes = 1\ntrain = data/train.txt\nnames = data/obj.names\n")
    (root / "train.txt").write_text("".join(f"data/obj_train_data/{name}.jpg\n" for name in "abc"))


def yolo_endings(root: Path) -> None:
    """Suffixes that browsers write, and a format that is not decoded."""
    write_yolo(root, {f"{split}/{name}": ROW for split in ("train", "val") for name in "abcd"})
    for split in ("train", "val"):
        for name, ending in zip("abc", ("jfif", "jpe", "avif"), strict=True):
            file = root / "images" / split / f"{name}.jpg"
            with Image.open(file) as image:
                image.save(file.with_suffix(f".{ending}"), format="AVIF" if ending == "avif" else "JPEG")
            file.unlink()
        (root / "images" / split / "d.jpg").rename(root / "images" / split / "d.heic")


def class_folders(root: Path) -> None:
    """A classification data set: no boxes."""
    for name in ("cat", "dog"):
        write_image(root / name / "1.jpg", seed=ord(name[0]))


ODD_DATA: tuple[Writer, ...] = (
    swapped_sizes, merged_ids, huge_ids, text_ids, one_name_twice, called_object, outlines_only, addresses_only, flags_as_text,
    boxes_beyond, damaged_files, deep_pixels, many_objects, a_strip, fiftyone_flat, fiftyone_splits, voc_subfolders, yolo_pose,
    yolo_names_of_yaml, yolo_label_studio, yolo_darknet, yolo_endings, class_folders,
)  # fmt: skip
