"""Boxes of another program: images are found by name or id, never by their place in a list."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import cv2
import pytest
from helpers.data_sets import coco_document, write_coco, write_image

from siamdetr.data.index import DetectionIndex
from siamdetr.data.readers.recognise import open_dataset
from siamdetr.errors import DataError
from siamdetr.proposals.compute import compute_proposals
from siamdetr.proposals.from_objectness import read_objectness
from siamdetr.proposals.methods import Recipe, propose

BOX = [6, 4, 30, 20]


def folder(root: Path, names: tuple[str, ...]) -> DetectionIndex:
    for number, name in enumerate(names):
        write_image(root / name, seed=number)
    return open_dataset(root)


def read(path: Path, entries: list[dict[str, Any]], index: DetectionIndex) -> dict[str, list[list[float]]]:
    """Name of each image -> its boxes."""
    path.write_text(json.dumps(entries))
    given = read_objectness(path, index)
    return {
        index.relative_path(i): given[int(index.image_ids[i])].tolist()
        for i in range(len(index))
        if int(index.image_ids[i]) in given
    }


@pytest.mark.parametrize("written", ["b/2.jpg", "2.jpg", "C:\\pictures\\b\\2.jpg", "/data/b/2.jpg"])
def test_images_of_a_plain_folder_are_found_by_name(written: str, tmp_path: Path) -> None:
    index = folder(tmp_path / "f", ("a/1.jpg", "b/2.jpg", "b/3.jpg"))
    assert read(tmp_path / "x.json", [{"file_name": written, "bbox": BOX}], index) == {"b/2.jpg": [[6, 4, 36, 24]]}


def test_numbers_mean_nothing_where_images_have_no_ids(tmp_path: Path) -> None:
    index = folder(tmp_path / "f", ("a.jpg", "b.jpg"))
    with pytest.raises(DataError, match=r"names image 1 by its number.*give each box the name of its file"):
        read(tmp_path / "x.json", [{"image_id": 1, "bbox": BOX, "score": 1}], index)
    assert set(read(tmp_path / "x.json", [{"image_id": "b.jpg", "bbox": BOX, "score": 1}], index)) == {"b.jpg"}


def test_a_name_that_several_folders_have_is_not_guessed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = folder(tmp_path / "f", ("a/1.jpg", "b/1.jpg"))
    entries = [{"file_name": "1.jpg", "bbox": BOX}, {"file_name": "b/1.jpg", "bbox": BOX}]
    with caplog.at_level(logging.WARNING):
        assert set(read(tmp_path / "x.json", entries, index)) == {"b/1.jpg"}
    assert "1 of 2 boxes are of images" in caplog.text


def test_without_scores_the_order_of_the_file_counts(tmp_path: Path) -> None:
    index = folder(tmp_path / "f", ("a.jpg",))
    boxes = [[k, 0, 9, 9] for k in (4, 2, 8)]
    entries = [{"file_name": "a.jpg", "bbox": box} for box in boxes]
    assert [box[0] for box in read(tmp_path / "x.json", entries, index)["a.jpg"]] == [4, 2, 8]


def test_the_data_set_s_own_ids_are_found_whatever_they_are(tmp_path: Path) -> None:
    document = coco_document(2)
    write_coco(tmp_path / "d", document)
    for entry, own in zip(document["images"], ("x1", 2**64 + 1), strict=True):
        entry["id"] = own
    (tmp_path / "d" / "annotations" / "instances_train.json").write_text(json.dumps(document | {"annotations": []}))
    index = open_dataset(tmp_path / "d")
    entries = [{"image_id": own, "bbox": BOX, "score": 1} for own in ("x1", 2**64 + 1)]
    assert len(read(tmp_path / "x.json", entries, index)) == 2


@pytest.mark.parametrize("method", ["edgeboxes", "selective-search", "merged"])
def test_a_second_opencv_that_hides_ximgproc_is_named_before_work_begins(
    method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = folder(tmp_path / "f", ("a.jpg",))
    monkeypatch.delattr(cv2, "ximgproc")
    for work in (
        lambda: compute_proposals(index, tmp_path / "p.arrow", recipe=Recipe(method)),
        lambda: propose(open_picture(index), Recipe(method)),
    ):
        with pytest.raises(
            DataError, match=r"has no module ximgproc.*pip install --force-reinstall opencv-contrib-python-headless"
        ):
            work()
    assert not (tmp_path / "p.arrow").exists()
    assert len(compute_proposals(index, tmp_path / "p.arrow", recipe=Recipe("random"))) == 1


def open_picture(index: DetectionIndex) -> Any:
    from siamdetr.images.open import open_untrusted

    return open_untrusted(index.path(0))
