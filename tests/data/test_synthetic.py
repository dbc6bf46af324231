"""The drawn data set: the same for the same seed, in COCO layout, with boxes that fit what is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from siamdetr.data.readers.recognise import available_splits, open_dataset
from siamdetr.data.synthetic.paint import paint
from siamdetr.data.synthetic.shapes import NUM_OBJECTS, SHAPES, draw_image, outlines_of, write_synthetic


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_it_is_a_data_set_in_coco_layout_without_problems(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    root = write_synthetic(tmp_path, num_unlabelled=3, num_train=6, num_val=4, size=64, progress=lambda *at: calls.append(at))  # fmt: skip
    assert calls == [(i + 1, 13) for i in range(13)]
    assert set(available_splits(root)) == {"train", "val"}
    train = open_dataset(root, split="train", strict=True)
    assert len(train) == 6
    assert train.class_names == SHAPES
    assert train.problems == ()
    assert (train.sizes == 64).all()
    assert train.num_boxes >= 6
    assert len(open_dataset(root / "unlabelled")) == 3
    assert len(open_dataset(root, split="val")) == 4


def test_the_seed_decides_every_byte_and_more_images_change_none(tmp_path: Path) -> None:
    small, again, more, other = (
        contents(write_synthetic(tmp_path / name, seed=seed, num_unlabelled=2, num_train=count, num_val=1, size=48))
        for name, seed, count in (("a", 1, 2), ("b", 1, 2), ("c", 1, 4), ("d", 2, 2))
    )
    assert small == again
    assert all(more[name] == data for name, data in small.items() if name.endswith(".jpg"))
    assert all(other[name] != data for name, data in small.items())


def test_parts_do_not_repeat_each_other(tmp_path: Path) -> None:
    root = write_synthetic(tmp_path, num_unlabelled=2, num_train=2, num_val=2, size=48)
    images = [data for name, data in contents(root).items() if name.endswith(".jpg")]
    assert len(set(images)) == 6


@pytest.mark.parametrize("name", SHAPES)
def test_a_box_is_the_extent_of_what_is_painted(name: str) -> None:
    centre, radius = np.asarray([50.0, 45.0]), 25
    outlines = [line * radius + centre for line in outlines_of(name)]
    picture = np.zeros((100, 100, 3), np.float32)
    area = paint(picture, outlines, lambda h, w: np.full((h, w, 3), 255, np.float32), np.random.default_rng(0))
    rows, columns = np.nonzero(picture.sum(axis=2) > 60)
    drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert drawn == pytest.approx([*outlines[0].min(axis=0), *outlines[0].max(axis=0)], abs=2.5)
    assert area == pytest.approx((picture.sum(axis=2) > 0).sum(), rel=0.15)
    if name == "ring":
        assert picture[45, 50].sum() == 0


def test_objects_are_few_large_and_mostly_visible() -> None:
    sides, counts = [], []
    for i in range(60):
        pixels, objects = draw_image(np.random.default_rng(i), 128)
        assert pixels.shape == (128, 128, 3)
        assert pixels.dtype == np.uint8
        counts.append(len(objects))
        for item in objects:
            x0, y0, x1, y1 = item.box
            assert 0 <= x0 < x1 <= 128
            assert 0 <= y0 < y1 <= 128
            sides.append(max(x1 - x0, y1 - y0) / 128)
    assert (min(counts), max(counts)) == NUM_OBJECTS
    assert np.min(sides) > 0.15
    assert np.max(sides) < 0.9
    assert {item.name for i in range(60) for item in draw_image(np.random.default_rng(i), 64)[1]} == set(SHAPES)


def test_classes_may_be_chosen_and_keep_their_order(tmp_path: Path) -> None:
    root = write_synthetic(tmp_path, num_unlabelled=0, num_train=5, num_val=0, size=48, classes=("ring", "disc"))
    document = json.loads((root / "annotations" / "instances_train.json").read_text())
    assert [(item["id"], item["name"]) for item in document["categories"]] == [(1, "ring"), (2, "disc")]


def test_wrong_wishes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got classes \['cat'\], expected some of disc, square, triangle"):
        write_synthetic(tmp_path, classes=("cat",))
    with pytest.raises(ValueError, match="got size 16, expected at least 32 pixels"):
        write_synthetic(tmp_path, size=16)
