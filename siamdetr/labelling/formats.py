"""Files for labelling tools: COCO, YOLO, PASCAL VOC, Label Studio and CVAT.

Supervision writes the formats that it has.

Boxes refer to the upright image. Bands and scores are written wherever the format has a place for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import supervision as sv
import yaml
from supervision.dataset.formats.pascal_voc import detections_to_pascal_voc
from supervision.dataset.formats.yolo import detections_to_yolo_annotations

from siamdetr.labelling.prelabels import Classes, Prelabel
from siamdetr.system.atomic_file import atomic_bytes

IMAGES = "images"  # folder of the images, beside the label files
Writer = Callable[[Path, Sequence[Prelabel], Classes], Path]


def write_coco(folder: Path, prelabels: Sequence[Prelabel], classes: Classes) -> Path:
    """`annotations/instances_train.json`, with `score` and `band` beside COCO's own keys."""
    annotations: list[dict[str, Any]] = []
    for image_id, one in enumerate(prelabels, start=1):
        for (x0, y0, x1, y1), label, score, band in _rows(one):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": classes.ids[label],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "score": score,
                    "band": band,
                }
            )
    document = {
        "images": [
            {"id": n, "file_name": one.name, "width": one.size[1], "height": one.size[0]}
            for n, one in enumerate(prelabels, start=1)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in zip(classes.ids, classes.names, strict=True)],
    }
    return _text(folder / "annotations" / "instances_train.json", json.dumps(document))


def write_yolo(folder: Path, prelabels: Sequence[Prelabel], classes: Classes) -> Path:
    """`data.yaml` and a text file an image in `labels/`; an image without boxes has an empty one."""
    for one in prelabels:
        lines = detections_to_yolo_annotations(_detections(one), (*one.size, 3))
        _text(folder / "labels" / f"{Path(one.name).stem}.txt", "".join(f"{line}\n" for line in lines))
    data = {"path": ".", "train": IMAGES, "names": dict(enumerate(classes.names))}
    return _text(folder / "data.yaml", yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def write_voc(folder: Path, prelabels: Sequence[Prelabel], classes: Classes) -> Path:
    """An XML file an image in `Annotations/`, and the list of images in `ImageSets/Main/train.txt`."""
    for one in prelabels:
        text = detections_to_pascal_voc(_detections(one), list(classes.names), one.name, (*one.size, 3))
        _text(folder / "Annotations" / f"{Path(one.name).stem}.xml", text)
    stems = "".join(f"{Path(one.name).stem}\n" for one in prelabels)
    return _text(folder / "ImageSets" / "Main" / "train.txt", stems)


def write_label_studio(folder: Path, prelabels: Sequence[Prelabel], classes: Classes) -> Path:
    """`tasks.json` with predictions, and the labelling interface in `label_config.xml`.

    Image addresses are those of Label Studio's local files storage over the folder that is written.
    """
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image")
    labels = ElementTree.SubElement(view, "RectangleLabels", name="label", toName="image")
    for name in classes.names:
        ElementTree.SubElement(labels, "Label", value=name)
    _text(folder / "label_config.xml", ElementTree.tostring(view, encoding="unicode"))
    tasks = [_label_studio_task(folder.name, one, classes) for one in prelabels]
    return _text(folder / "tasks.json", json.dumps(tasks, indent=1))


def write_cvat(folder: Path, prelabels: Sequence[Prelabel], classes: Classes) -> Path:
    """`annotations.xml` in the format "CVAT for images 1.1"; boxes have the attributes `score` and `band`."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for name in classes.names:
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        attributes = ElementTree.SubElement(label, "attributes")
        for attribute in ("score", "band"):
            entry = ElementTree.SubElement(attributes, "attribute")
            for key, value in {"name": attribute, "mutable": "False", "input_type": "text", "values": ""}.items():
                ElementTree.SubElement(entry, key).text = value
    for number, one in enumerate(prelabels):
        height, width = one.size
        image = ElementTree.SubElement(
            root, "image", id=str(number), name=one.name, width=str(width), height=str(height)
        )
        for box, label_index, score, band in _rows(one):
            x0, y0, x1, y1 = (f"{value:.2f}" for value in box)
            shape = ElementTree.SubElement(
                image,
                "box",
                label=classes.names[label_index],
                source="auto",
                occluded="0",
                z_order="0",
                xtl=x0,
                ytl=y0,
                xbr=x1,
                ybr=y1,
            )
            for key, value in (("score", f"{score:.4f}"), ("band", band)):
                ElementTree.SubElement(shape, "attribute", name=key).text = value
    ElementTree.indent(root)
    return _text(folder / "annotations.xml", ElementTree.tostring(root, encoding="unicode"))


WRITERS: Mapping[str, Writer] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_voc,
    "label-studio": write_label_studio,
    "cvat": write_cvat,
}


def _label_studio_task(folder: str, one: Prelabel, classes: Classes) -> dict[str, Any]:
    height, width = one.size
    result = [
        {
            "id": f"box{n}",
            "type": "rectanglelabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": score,
            "meta": {"text": [band]},
            "value": {
                "x": 100 * x0 / width,
                "y": 100 * y0 / height,
                "width": 100 * (x1 - x0) / width,
                "height": 100 * (y1 - y0) / height,
                "rotation": 0,
                "rectanglelabels": [classes.names[label]],
            },
        }
        for n, ((x0, y0, x1, y1), label, score, band) in enumerate(_rows(one))
    ]
    least = float(one.scores.min()) if len(one.scores) else 0.0
    return {
        "data": {"image": f"/data/local-files/?d={folder}/{IMAGES}/{one.name}"},
        "predictions": [{"model_version": "siamdetr", "score": least, "result": result}],
    }


def _rows(one: Prelabel) -> list[tuple[tuple[float, float, float, float], int, float, str]]:
    """Corners, label, score and band of each box, as plain values."""
    return [
        ((x0, y0, x1, y1), label, round(score, 5), band)
        for (x0, y0, x1, y1), label, score, band in zip(
            one.boxes.astype(float).round(2).tolist(), one.labels.tolist(), one.scores.tolist(), one.bands, strict=True
        )
    ]


def _detections(one: Prelabel) -> sv.Detections:
    return sv.Detections(one.boxes.astype(np.float64), confidence=one.scores, class_id=one.labels.astype(int))


def _text(path: Path, text: str) -> Path:
    atomic_bytes(path, text.encode())
    return path
