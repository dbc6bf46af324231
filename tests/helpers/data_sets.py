"""Small data sets in every layout, written fresh by the tests and then spoilt on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 60, 40


def write_image(path: Path, *, seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> Path:
    """A noise image of `size` (width, height); `options` go to Pillow's save."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def coco_document(count: int = 3, first: int = 1) -> dict[str, Any]:
    """`count` images with two boxes each, of the classes cat (id 1) and dog (id 2)."""
    images = [
        {"id": i, "file_name": f"{i:03}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(first, first + count)
    ]
    annotations = [
        {"id": 2 * i + k, "image_id": i, "category_id": k + 1, "bbox": [20.0 + 5 * k, 10.0, 15.0, 12.0], "area": 180.0}
        for i in range(first, first + count)
        for k in range(2)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(root: Path, document: dict[str, Any] | None = None, *, split: str = "train") -> Path:
    """A COCO data set with the images of `document`; returns the annotation file."""
    document = coco_document() if document is None else document
    for entry in document["images"]:
        if isinstance(entry, dict) and "file_name" in entry:
            write_image(root / split / entry["file_name"], seed=int(Path(entry["file_name"]).stem))
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))
    return file


def voc_xml(stem: str, objects: str | None = None, *, width: int = WIDTH, height: int = HEIGHT) -> str:
    """An annotation with the given <object> elements; by default one cat and one difficult dog."""
    if objects is None:
        objects = voc_object("cat", 1, 1, 30, 20) + voc_object("dog", 20, 10, 60, 40, difficult=1)
    return (
        f"<annotation><filename>{stem}.jpg</filename><size><width>{width}</width><height>{height}</height>"
        f"<depth>3</depth></size>{objects}</annotation>"
    )


def voc_object(name: str, xmin: object, ymin: object, xmax: object, ymax: object, *, difficult: int = 0) -> str:
    """One <object>."""
    corners = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


def write_voc(root: Path, splits: dict[str, list[str]] | None = None) -> Path:
    """A VOC data set; `splits` maps a name to image stems."""
    splits = {"train": ["a", "b"], "val": ["c"]} if splits is None else splits
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, stems in splits.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        for stem in stems:
            write_image(root / "JPEGImages" / f"{stem}.jpg", seed=sum(map(ord, stem)))
            (root / "Annotations" / f"{stem}.xml").write_text(voc_xml(stem))
    return root


def write_yolo(root: Path, rows: dict[str, str] | None = None, yaml: str | None = None) -> Path:
    """A YOLO data set; `rows` maps "split/stem" to the text of the label file."""
    rows = {"train/a": "0 0.5 0.5 0.2 0.4\n1 0.25 0.25 0.5 0.5\n", "val/b": "1 0.5 0.5 1 1\n"} if rows is None else rows
    for number, (name, text) in enumerate(rows.items()):
        write_image(root / "images" / f"{name}.jpg", seed=number)
        label = root / "labels" / f"{name}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(text)
    default = "path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n"
    (root / "data.yaml").write_text(default if yaml is None else yaml)
    return root
