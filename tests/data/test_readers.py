"""Readers of the four layouts: meaning of fields, skipped entries, and messages of refusals."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers.data_sets import coco_document, voc_object, voc_xml, write_coco, write_image, write_voc, write_yolo
from PIL import Image

from siamdetr.data.concatenate import concatenate
from siamdetr.data.index import DetectionIndex, require_labels
from siamdetr.data.problems import count_by_kind
from siamdetr.data.readers.recognise import available_splits, detect_format, open_dataset
from siamdetr.errors import DataError


def kinds(index: DetectionIndex) -> dict[str, int]:
    return count_by_kind(index.problems)


# --- real data -------------------------------------------------------------------------------------------------------


def test_bccd_has_its_published_counts_but_for_two_boxes_without_area(real_data: Path) -> None:
    index = open_dataset(real_data / "bccd")
    assert len(index) == 364
    counts = dict(zip(index.class_names, index.class_counts().tolist(), strict=True))
    assert counts == {"RBC": 4155 - 2, "WBC": 372, "Platelets": 361}
    assert [(p.kind, p.file, p.where) for p in index.problems] == [
        ("degenerate-box", "Annotations/BloodImage_00338.xml", "object 13"),
        ("degenerate-box", "Annotations/BloodImage_00343.xml", "object 4"),
    ]
    sizes = {split: len(open_dataset(real_data / "bccd", split=split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 205, "val": 87, "test": 72}


def test_coco_mini_has_its_published_counts(real_data: Path) -> None:
    found = {}
    for split in available_splits(real_data / "coco-mini"):
        index = open_dataset(real_data / "coco-mini", split=split, strict=True)
        assert index.num_classes == 80
        assert index.category_ids[-1] == 90
        found[split] = (len(index), index.num_boxes, int(index.crowd.sum()))
    assert found == {"train": (80, 739, 8), "val": (79, 624, 5)}


def test_a_folder_of_real_images_is_read_without_labels(real_data: Path) -> None:
    index = open_dataset(real_data / "coco-mini", format="folder")
    assert (len(index), index.num_boxes, index.num_classes) == (239, 0, 0)
    assert all(index.path(i).is_file() for i in range(len(index)))


# --- COCO ------------------------------------------------------------------------------------------------------------


def test_coco_boxes_become_corners_and_ids_with_gaps_become_labels(tmp_path: Path) -> None:
    document = coco_document(2)
    document["categories"] = [{"id": 90, "name": "dog"}, {"id": 7, "name": "cat"}]
    for annotation in document["annotations"]:
        annotation["category_id"] = {1: 7, 2: 90}[annotation["category_id"]]
    document["annotations"].reverse()  # files need not be sorted by image
    write_coco(tmp_path, document)
    index = open_dataset(tmp_path, split="train")
    assert (index.class_names, index.category_ids) == (("cat", "dog"), (7, 90))
    np.testing.assert_array_equal(index.boxes_of(0), [[25, 10, 40, 22], [20, 10, 35, 22]])
    assert index.labels_of(0).tolist() == [1, 0]
    assert index.path(1) == tmp_path / "train" / "002.jpg"
    assert index.image_ids.tolist() == [1, 2]
    assert index.sizes.tolist() == [[40, 60], [40, 60]]


def test_coco_keeps_crowds_areas_and_images_without_boxes(tmp_path: Path) -> None:
    document = coco_document(2)
    document["annotations"] = document["annotations"][:2]
    document["annotations"][0] |= {"iscrowd": 1, "segmentation": {"counts": "xyz", "size": [40, 60]}, "area": 99.5}
    del document["annotations"][1]["area"]
    write_coco(tmp_path, document)
    index = open_dataset(tmp_path)
    assert index.crowd.tolist() == [True, False]
    assert index.areas.tolist() == [99.5, 180.0]  # the second is that of the box
    assert index.box_counts().tolist() == [2, 0]


def test_coco_skips_and_counts_every_bad_entry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    document = coco_document(4)
    document["annotations"][0]["bbox"] = [10, 10, 0, 5]
    document["annotations"][1]["bbox"] = [float("nan"), 10, 5, 5]
    document["annotations"][2]["bbox"] = [70, 10, 5, 5]
    document["annotations"][3]["bbox"] = [50, 30, 20, 20]  # reaches beyond: clipped, kept
    document["annotations"][4]["category_id"] = 5
    document["annotations"][5]["image_id"] = 77
    document["annotations"][6]["bbox"] = [1, 2, "x"]
    write_coco(tmp_path, document)
    (tmp_path / "train" / "001.jpg").unlink()
    document["images"].append(dict(document["images"][1]))
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(document))
    with caplog.at_level(logging.WARNING):
        index = open_dataset(tmp_path)
    assert kinds(index) == {
        "duplicate-image-id": 1,
        "malformed-box": 1,
        "missing-image": 1,
        "outside-box": 1,
        "unknown-category": 1,
        "unknown-image": 1,
        "clipped-box": 1,
    }  # the boxes of the missing image go with it, unsaid
    np.testing.assert_array_equal(index.boxes, [[50, 30, 60, 40], [25, 10, 40, 22]])
    assert len(caplog.records) == 1
    assert "1 x box that lies outside the image: the box is left out" in caplog.text
    assert f"`siamdetr doctor {tmp_path}` lists them" in caplog.text


def test_strict_refuses_and_lists(tmp_path: Path) -> None:
    document = coco_document()
    document["annotations"][0]["bbox"] = [10, 10, 0, 5]
    write_coco(tmp_path, document)
    with pytest.raises(DataError, match=r"1 problems, and strict.*\n.*instances_train.json, annotation 2: box without"):
        open_dataset(tmp_path, strict=True)


def test_coco_images_without_size_get_that_of_the_file_as_seen(tmp_path: Path) -> None:
    document = coco_document(1)
    del document["images"][0]["width"]
    write_coco(tmp_path, document)
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(tmp_path / "train" / "001.jpg", exif=exif)
    assert open_dataset(tmp_path).sizes.tolist() == [[60, 40]]


def test_roboflow_coco_folders_are_found(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write_image(tmp_path / split / "001.jpg")
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(coco_document(1)))
    assert available_splits(tmp_path) == ("train", "val")
    assert open_dataset(tmp_path, split="val").path(0) == tmp_path / "valid" / "001.jpg"
    assert open_dataset(tmp_path).image_ids.tolist() == [1, 2]  # both parts number from 1: renumbered


def test_broken_json_is_named_with_line_and_column(tmp_path: Path) -> None:
    file = write_coco(tmp_path)
    file.write_text('{"images": [\n  {"id": 1,,}]}')
    with pytest.raises(DataError, match=r"instances_train.json: line 2, column 12: .*expected COCO JSON"):
        open_dataset(tmp_path)
    file.write_text('{"images": 3}')
    with pytest.raises(DataError, match='without a list "images"'):
        open_dataset(tmp_path)
    file.write_text('{"images": [], "annotations": {}}')
    with pytest.raises(DataError, match='"annotations" is a dict, expected a list'):
        open_dataset(tmp_path)
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match="not a JSON text"):
        open_dataset(file)


def test_an_annotation_file_may_be_given_itself(tmp_path: Path) -> None:
    file = write_coco(tmp_path)
    assert len(open_dataset(file)) == 3


# --- VOC -------------------------------------------------------------------------------------------------------------


def test_voc_counts_pixels_from_one(tmp_path: Path) -> None:
    index = open_dataset(write_voc(tmp_path), split="train")
    np.testing.assert_array_equal(index.boxes_of(0), [[0, 0, 30, 20], [19, 9, 60, 40]])
    assert index.difficult.tolist() == [False, True] * 2
    assert index.class_names == ("cat", "dog")
    assert index.category_ids == (1, 2)
    assert index.sizes.tolist() == [[40, 60]] * 2


def test_voc_class_names_are_those_of_all_splits_or_of_a_labels_file(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "Annotations" / "c.xml").write_text(voc_xml("c", voc_object("ant", 1, 1, 9, 9)))
    assert open_dataset(tmp_path, split="train").class_names == ("ant", "cat", "dog")
    (tmp_path / "labels.txt").write_text("dog\ncat\n")
    index = open_dataset(tmp_path)
    assert index.class_names == ("dog", "cat")
    assert kinds(index) == {"unknown-category": 1}


def test_voc_without_imagesets_reads_all_annotations(tmp_path: Path) -> None:
    write_voc(tmp_path)
    for file in (tmp_path / "ImageSets" / "Main").iterdir():
        file.unlink()
    assert available_splits(tmp_path) == ()
    assert len(open_dataset(tmp_path)) == 3


def test_voc_lists_of_one_class_are_no_splits_and_trainval_is_not_read_twice(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": ["a"], "val": ["b"], "trainval": ["a", "b"], "cat_train": ["a"]})
    assert available_splits(tmp_path) == ("train", "trainval", "val")
    assert len(open_dataset(tmp_path)) == 2


def test_voc_beside_its_images_is_found(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write_image(tmp_path / split / "a.png")
        (tmp_path / split / "a.xml").write_text(voc_xml("a"))
    assert detect_format(tmp_path) == "voc"
    assert open_dataset(tmp_path, split="val").path(0) == tmp_path / "valid" / "a.png"


def test_voc_names_broken_xml_by_line_and_goes_on(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_text("<annotation>\n<object></annotation>")
    index = open_dataset(tmp_path, split="train")
    (problem,) = index.problems
    assert (problem.kind, problem.file, problem.where) == (
        "unreadable-annotations",
        "Annotations/a.xml",
        "line 2, column 11",
    )
    assert len(index) == 1


# --- YOLO ------------------------------------------------------------------------------------------------------------


def test_yolo_fractions_and_polygons_become_pixels(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train/a": "0 0.5 0.5 0.2 0.4\n1 0.1 0.1 0.3 0.1 0.2 0.6\n", "val/b": ""})
    index = open_dataset(tmp_path, split="train")
    np.testing.assert_allclose(index.boxes, [[24, 12, 36, 28], [6, 4, 18, 24]], rtol=1e-6)
    assert index.labels.tolist() == [0, 1]
    assert index.path(0) == tmp_path / "images" / "train" / "a.jpg"
    assert open_dataset(tmp_path, split="val").num_boxes == 0


def test_yolo_names_may_be_a_map_with_gaps(tmp_path: Path) -> None:
    write_yolo(
        tmp_path, {"train/a": "7 0.5 0.5 0.2 0.4\n1 0.5 0.5 0.2 0.4"}, "train: images/train\nnames: {3: cat, 7: dog}\n"
    )
    index = open_dataset(tmp_path)
    assert (index.class_names, index.category_ids, index.labels.tolist()) == (("cat", "dog"), (3, 7), [1])
    assert kinds(index) == {"unknown-category": 1}


def test_yolo_boxes_refer_to_the_image_as_seen(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train/a": "0 0.5 0.5 1 1"}, "train: images/train\nnames: [cat]\n")
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(tmp_path / "images" / "train" / "a.jpg", exif=exif)
    assert open_dataset(tmp_path).boxes.tolist() == [[0, 0, 40, 60]]


def test_yolo_splits_may_be_lists_of_files(tmp_path: Path) -> None:
    write_yolo(tmp_path, yaml="train: train.txt\nnames: [cat, dog]\n")
    (tmp_path / "train.txt").write_text("./images/train/a.jpg\n\nimages/train/none.jpg\n")
    index = open_dataset(tmp_path)
    assert len(index) == 1
    assert [(p.kind, p.what) for p in index.problems] == [("missing-image", "train.txt, line 3")]


def test_yolo_rows_that_are_no_boxes_are_left_out(tmp_path: Path) -> None:
    write_yolo(
        tmp_path, {"train/a": "0 0.5 0.5 0.2\n0 a b c d\n0.5 .1 .1 .1 .1\n0 20 15 10 8\n0 0.5 0.5 0.2 0.4", "val/b": ""}
    )
    index = open_dataset(tmp_path, split="train")
    assert kinds(index) == {"malformed-box": 3, "not-a-fraction": 1}
    assert index.problems[0].where == "line 1"
    assert index.num_boxes == 1


def test_a_bad_data_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    write_yolo(tmp_path, yaml="train: images/train\nnames: [cat\n")
    with pytest.raises(DataError, match=r"data.yaml: line 3, column 1: .*expected a YOLO data.yaml"):
        open_dataset(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: cat\n")
    with pytest.raises(DataError, match="names is 'cat', expected a list of names"):
        open_dataset(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [cat]\n")
    with pytest.raises(DataError, match=r"got the keys \['names'\]"):
        open_dataset(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/nowhere\nnames: [cat]\n")
    with pytest.raises(DataError, match=r"nowhere: cannot be read .*expected a folder of images or a list"):
        open_dataset(tmp_path)


# --- opening ---------------------------------------------------------------------------------------------------------


def test_auto_recognises_each_layout(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco")
    write_voc(tmp_path / "voc")
    write_yolo(tmp_path / "yolo")
    write_image(tmp_path / "folder" / "deep" / "deeper" / "x.PNG")
    for name in ("coco", "voc", "yolo", "folder"):
        assert detect_format(tmp_path / name) == name


def test_a_folder_is_read_in_depth_and_hidden_files_are_not(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "a.jpg", "b/c/1.png", ".hidden/x.jpg", "._a.jpg"):
        write_image(tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("")
    index = open_dataset(tmp_path)
    assert [index.relative_path(i) for i in range(len(index))] == ["a.jpg", "b/2.jpg", "b/c/1.png"]


def test_a_missing_split_lists_the_available_ones(tmp_path: Path) -> None:
    write_voc(tmp_path)
    with pytest.raises(DataError, match=r"there is no split 'test'; available: train, val$"):
        open_dataset(tmp_path, split="test")
    write_image(tmp_path / "plain" / "a.jpg")
    with pytest.raises(DataError, match="available: none: it is not divided"):
        open_dataset(tmp_path / "plain", split="train")


def test_an_ambiguous_split_asks_which(tmp_path: Path) -> None:
    write_coco(tmp_path, split="val2014")
    write_coco(tmp_path, split="val2017")
    with pytest.raises(DataError, match="split 'val' fits several: val2014, val2017; name one of them"):
        open_dataset(tmp_path, split="val")
    assert available_splits(tmp_path) == ("val2014", "val2017")
    assert len(open_dataset(tmp_path, split="val2017")) == 3


def test_nothing_to_read_is_said_clearly(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file or folder; expected COCO"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match="found no images and no annotations; expected COCO"):
        open_dataset(tmp_path)
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DataError, match=r"ending in '.csv', expected a folder"):
        open_dataset(tmp_path / "a.csv")
    with pytest.raises(DataError, match="format 'tfrecord' is not known; expected auto, coco"):
        open_dataset(tmp_path, format="tfrecord")
    with pytest.raises(DataError, match=r"found no voc data; .*--format auto recognises which"):
        open_dataset(tmp_path, format="voc")


def test_zero_images_and_zero_labels_are_refused(tmp_path: Path) -> None:
    document = coco_document()
    file = write_coco(tmp_path, document)
    document["annotations"] = []
    file.write_text(json.dumps(document))
    with pytest.raises(
        DataError, match="got 3 images and not one labelled box, expected at least one; `siamdetr doctor"
    ):
        require_labels(open_dataset(tmp_path))
    for image in (tmp_path / "train").iterdir():
        image.unlink()
    with pytest.raises(DataError, match="got zero images, expected at least one: 3 x image file is missing"):
        open_dataset(tmp_path)


def test_progress_reaches_its_total(tmp_path: Path) -> None:
    for number, write in enumerate((write_coco, write_voc, write_yolo)):
        write(tmp_path / str(number))
        calls: list[tuple[int, int]] = []
        open_dataset(tmp_path / str(number), progress=lambda done, total, calls=calls: calls.append((done, total)))
        assert calls
        assert calls[-1][0] == calls[-1][1]


# --- the index -------------------------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path) -> DetectionIndex:
    document = coco_document(40)
    document["annotations"] = [a for a in document["annotations"] if a["category_id"] == 1 or a["image_id"] % 4 == 0]
    write_coco(tmp_path, document)
    return open_dataset(tmp_path)


def test_subset_keeps_order_paths_and_boxes(index: DetectionIndex) -> None:
    part = index.subset([7, 0])
    assert part.image_ids.tolist() == [8, 1]
    assert [part.path(i) for i in range(2)] == [index.path(7), index.path(0)]
    np.testing.assert_array_equal(part.boxes_of(0), index.boxes_of(7))
    np.testing.assert_array_equal(part.boxes_of(1), index.boxes_of(0))
    assert len(index.subset([])) == 0
    with pytest.raises(IndexError, match=r"positions from 40 to 40, expected 0..39"):
        index.subset([40])


@pytest.mark.parametrize("seed", range(5))
def test_fractions_are_nested_repeatable_and_balanced(index: DetectionIndex, seed: int) -> None:
    shares = (0.1, 0.2, 0.5, 1.0)
    parts = [set(index.fraction(share, seed=seed).image_ids.tolist()) for share in shares]
    assert [len(part) for part in parts] == [4, 8, 20, 40]
    assert all(smaller <= larger for smaller, larger in pairwise(parts))
    assert parts[1] == set(index.fraction(0.2, seed=seed).image_ids.tolist())
    dogs = {i for i in range(1, 41) if i % 4 == 0}  # the rare class, on a quarter of the images
    assert all(abs(len(part & dogs) - 10 * share) <= 1 for part, share in zip(parts, shares, strict=True))


def test_a_fraction_outside_its_range_is_refused(index: DetectionIndex) -> None:
    with pytest.raises(ValueError, match=r"fraction: got 10, expected a share above 0 and at most 1, e\.g\. 0\.1"):
        index.fraction(10)


def test_without_labels_keeps_the_images(index: DetectionIndex) -> None:
    bare = index.without_labels()
    assert (len(bare), bare.num_boxes, bare.num_classes) == (40, 0, 0)
    assert bare.boxes_of(3).shape == (0, 4)
    assert bare.fraction(0.5).num_boxes == 0


def test_parts_join_and_keep_their_paths(tmp_path: Path) -> None:
    parts = [open_dataset(write_voc(tmp_path / name)) for name in ("first", "second/deep")]
    joined = concatenate(parts)
    assert len(joined) == 6
    assert joined.root == tmp_path
    assert [joined.path(i) for i in range(6)] == [part.path(i) for part in parts for i in range(3)]
    np.testing.assert_array_equal(joined.boxes, np.concatenate([part.boxes for part in parts]))
    with pytest.raises(DataError, match=r"classes \[\] differ from \[cat, dog\]"):
        concatenate([joined, joined.without_labels()])


def test_the_same_classes_with_other_ids_are_not_called_other_classes(tmp_path: Path) -> None:
    other = coco_document()
    for entry in other["categories"]:
        entry["id"] += 6
    for entry in other["annotations"]:
        entry["category_id"] += 6
    write_coco(tmp_path / "one")
    write_coco(tmp_path / "two", other)
    parts = [open_dataset(tmp_path / name) for name in ("one", "two")]
    with pytest.raises(
        DataError, match=r"two: its classes have the ids \[7, 8\], in .*one the same classes have \[1, 2\]; give"
    ):
        concatenate(parts)


def test_arrays_cannot_be_written_to_but_copies_can(index: DetectionIndex) -> None:
    with pytest.raises(ValueError, match="read-only"):
        index.boxes[0, 0] = 5
    index.boxes_of(0)[:] = 0
    assert index.boxes_of(0).any()
