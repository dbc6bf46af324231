"""Splits: the mix of classes is kept, groups stay whole, and the same seed gives the same parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.data_sets import coco_document, write_coco, write_image
from PIL import Image, ImageEnhance

from siamdetr.data.duplicates import duplicate_groups, find_duplicates, hash_images
from siamdetr.data.index import DetectionIndex
from siamdetr.data.readers.recognise import open_dataset
from siamdetr.data.split_plan import group_by_pattern, join_groups, plan_split
from siamdetr.errors import DataError


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DetectionIndex:
    """60 images: a cat in each, a dog in every third, a fox in six of them."""
    root = tmp_path_factory.mktemp("split")
    document = coco_document(60)
    document["categories"].append({"id": 3, "name": "fox"})
    kept = []
    for annotation in document["annotations"]:
        image = annotation["image_id"]
        if annotation["category_id"] == 2:
            annotation["category_id"] = 3 if image % 10 == 0 else 2
        if annotation["category_id"] != 2 or image % 3 == 0:
            kept.append(annotation)
    document["annotations"] = kept
    write_coco(root, document)
    return open_dataset(root, split="train")


@pytest.mark.parametrize("seed", range(3))
def test_every_part_has_its_share_of_images_and_of_every_class(index: DetectionIndex, seed: int) -> None:
    parts = plan_split(index, {"train": 4, "val": 1, "test": 1}, seed=seed)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(60))
    assert {name: len(part) for name, part in parts.items()} == {"train": 40, "val": 10, "test": 10}
    totals = index.class_counts()
    for name, share in {"train": 4 / 6, "val": 1 / 6, "test": 1 / 6}.items():
        for label in range(3):
            count = sum(int((index.labels_of(i) == label).sum()) for i in parts[name])
            assert abs(count - share * totals[label]) <= 1


def test_a_seed_is_a_split(index: DetectionIndex) -> None:
    def val(seed: int) -> list[int]:
        return plan_split(index, {"train": 0.8, "val": 0.2}, seed=seed)["val"].tolist()

    assert val(1) == val(1)
    assert val(1) != val(2)


def test_groups_stay_whole(index: DetectionIndex) -> None:
    groups = np.arange(60) // 5
    parts = plan_split(index, {"train": 0.5, "val": 0.5}, groups=groups)
    assert not set(groups[parts["train"]]) & set(groups[parts["val"]])
    assert len(parts["train"]) == 30


def test_groups_by_file_name() -> None:
    names = ["film1_001.jpg", "film2_001.jpg", "film1_002.jpg", "photo.jpg"]
    assert group_by_pattern(names, r"^(film\d+)_").tolist() == [0, 1, 0, 2]
    with pytest.raises(DataError, match=r"matches none of 4 file names, such as 'film1_001\.jpg'"):
        group_by_pattern(names, "video")
    with pytest.raises(DataError, match="is not a regular expression"):
        group_by_pattern(names, "(")


def test_groupings_are_joined() -> None:
    joined = join_groups(np.array([0, 0, 1, 2, 3]), np.array([0, 1, 1, 2, 3]))
    assert len(set(joined[:3])) == 1
    assert len(set(joined)) == 3


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"train": 1.0}, "got 1 part, expected two or more"),
        ({"train": 0.8, "val": 0.0}, "the share of 'val' is 0.0, expected a number above 0"),
        ({"train": 0.8, "../x": 0.2}, "cannot name a part"),
    ],
)
def test_shares_that_make_no_sense_are_refused(index: DetectionIndex, shares: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        plan_split(index, shares)


def test_more_parts_than_groups_are_refused(index: DetectionIndex) -> None:
    with pytest.raises(DataError, match="1 groups of images cannot fill 2 parts"):
        plan_split(index, {"a": 1, "b": 1}, groups=np.zeros(60, dtype=np.int64))


def _scene(seed: int) -> Image.Image:
    """A smooth picture, as photographs are."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC)


def test_duplicates_are_found_through_size_compression_and_exposure(tmp_path: Path) -> None:
    for seed in range(40):
        _scene(seed).save(tmp_path / f"{seed:02}.png")
    _scene(3).resize((200, 150)).save(tmp_path / "a.jpg", quality=60)
    ImageEnhance.Brightness(_scene(7)).enhance(1.08).save(tmp_path / "b.png")
    (tmp_path / "c.jpg").write_bytes(b"no image")
    (tmp_path / "d.jpg").write_bytes(b"no image")
    paths = sorted(tmp_path.iterdir())
    images = hash_images(paths)
    groups = duplicate_groups(find_duplicates(images))
    assert [[paths[i].name for i in group] for group in groups] == [["03.png", "a.jpg"], ["07.png", "b.png"]]
    assert images.readable.sum() == 42


def test_pictures_of_one_colour_are_told_apart_by_nothing_and_noise_by_everything(tmp_path: Path) -> None:
    for seed in range(12):
        write_image(tmp_path / f"{seed}.png", seed=seed, size=(64, 64))
    assert duplicate_groups(find_duplicates(hash_images(sorted(tmp_path.iterdir())))) == []
