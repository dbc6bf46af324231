"""Remarks of the doctor: near-duplicates within and across splits, rare classes, uneven splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_sets import coco_document, write_coco, write_image
from PIL import Image

from siamdetr.data.doctor import Diagnosis, diagnose


def remarks(diagnosis: Diagnosis) -> list[tuple[str, str, str]]:
    return [(one.kind, one.split, one.where) for one in diagnosis.remarks]


def scene(seed: int) -> Image.Image:
    """A smooth picture, such as a photo in the eyes of a hash."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((320, 240), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for split, first in (("train", 1), ("val", 10)):
        write_coco(tmp_path, coco_document(3, first=first), split=split)
        for i in range(first, first + 3):
            scene(i).save(tmp_path / split / f"{i:03}.jpg")
    return tmp_path


def test_a_smaller_copy_in_another_split_leaks_and_one_in_its_own_repeats(photos: Path) -> None:
    scene(1).resize((160, 120)).save(photos / "val" / "011.jpg", quality=60)
    scene(2).point(lambda value: min(255, value + 6)).save(photos / "train" / "003.jpg")
    found = diagnose(photos)
    assert remarks(found) == [
        ("near-leakage", "val", "val/011.jpg"),
        ("near-duplicate", "train", "train/003.jpg"),
    ]
    assert "much like train/001.jpg of split 'train'" in {one.what for one in found.remarks}
    assert json.loads(found.to_json())["remarks"][0]["kind"] == "near-leakage"


def test_the_same_bytes_are_a_problem_and_not_remarked_on_again(photos: Path) -> None:
    (photos / "val" / "011.jpg").write_bytes((photos / "train" / "001.jpg").read_bytes())
    found = diagnose(photos)
    assert [problem.kind for problem in found.problems if problem.kind == "leakage"] == ["leakage"]
    assert remarks(found) == []


def test_an_unreadable_image_is_like_none(photos: Path) -> None:
    for name in ("train/001.jpg", "val/010.jpg"):
        (photos / name).write_bytes(b"no image")
    assert remarks(diagnose(photos)) == []


def with_boxes(root: Path, split: str, labels: list[list[int]], side: float = 10.0) -> None:
    """Images with a box of each of the given classes; their files are noise."""
    first = {"train": 1, "val": 1000, "test": 2000}[split]
    document = coco_document(len(labels), first=first)
    document["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    document["annotations"] = []
    for image, classes in enumerate(labels):
        for category in classes:
            box = [1.0, 1.0, side, side]
            entry: dict[str, Any] = {"id": len(document["annotations"]) + 1, "image_id": first + image}
            document["annotations"].append({**entry, "category_id": category, "bbox": box, "area": side * side})
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))
    for image in range(len(labels)):
        write_image(root / split / f"{first + image:03}.jpg", seed=first + image)


def test_a_rare_class_and_one_that_is_never_scored_are_named(tmp_path: Path) -> None:
    with_boxes(tmp_path, "train", [[1] * 30] * 4 + [[2]])
    with_boxes(tmp_path, "val", [[1]] * 5)
    assert remarks(diagnose(tmp_path)) == [
        ("rare-class", "train", "class 'dog'"),
        ("unscored-class", "val", "class 'dog'"),
    ]


def test_a_split_of_other_images_is_skewed_and_a_random_one_is_not(tmp_path: Path) -> None:
    mixed = [[1, 2] if i % 4 == 0 else [1] for i in range(60)]
    with_boxes(tmp_path, "train", mixed)
    with_boxes(tmp_path, "val", mixed[:24])
    with_boxes(tmp_path, "test", [[1, 2]] * 24, side=30.0)
    found = diagnose(tmp_path)
    assert remarks(found) == [("split-skew", "test", "class 'dog'"), ("split-skew", "test", "objects' size")]
    assert found.remarks[0].what == "in 100% of the images, 25% in 'train'"
    assert found.remarks[1].what == "median 30 pixels, 10 in 'train'"


def test_bccd_has_one_pair_of_like_images_in_two_splits(real_data: Path) -> None:
    assert remarks(diagnose(real_data / "bccd")) == [("near-leakage", "val", "JPEGImages/BloodImage_00037.jpg")]
