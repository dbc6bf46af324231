"""Each field of an annotation is read as it was meant, or refused by name.

Sizes, ids, names, flags, numbers, and rows of other tasks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_sets import coco_document, voc_object, voc_xml, write_coco, write_image, write_voc, write_yolo
from PIL import Image

from siamdetr.data.concatenate import concatenate
from siamdetr.data.doctor import diagnose
from siamdetr.data.index import DetectionIndex
from siamdetr.data.problems import count_by_kind
from siamdetr.data.readers.recognise import available_splits, find_source, open_dataset
from siamdetr.data.readers.yolo_layout import load_yolo
from siamdetr.errors import DataError


def coco_with(root: Path, **changes: dict[str, Any]) -> DetectionIndex:
    """A data set of one image and one box.

    `images`, `annotations` and `categories` change fields of the first entries.
    """
    document = coco_document(1)
    document["annotations"] = document["annotations"][:1]
    write_coco(root, document)
    for key, fields in changes.items():
        document[key][0] |= fields
    (root / "annotations" / "instances_train.json").write_text(json.dumps(document))
    return open_dataset(root)


def kinds(index: DetectionIndex) -> dict[str, int]:
    return count_by_kind(index.problems)


# --- sizes -----------------------------------------------------------------------------------------------------------


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(path, exif=exif)


def test_boxes_inside_the_upright_file_stay_whatever_size_is_annotated(tmp_path: Path) -> None:
    document = coco_document(2)
    document["annotations"][0]["bbox"] = [5, 30, 30, 25]  # inside 40 x 60, outside 60 x 40
    write_coco(tmp_path / "coco", document)
    turned(tmp_path / "coco" / "train" / "001.jpg")
    index = open_dataset(tmp_path / "coco")
    assert index.boxes_of(0)[0].tolist() == [5, 30, 35, 55]
    assert index.sizes.tolist() == [[60, 40], [40, 60]]
    assert kinds(index) == {"exif-size-mismatch": 1}
    write_voc(tmp_path / "voc", {"train": ["a"]})
    turned(tmp_path / "voc" / "JPEGImages" / "a.jpg")
    (tmp_path / "voc" / "Annotations" / "a.xml").write_text(voc_xml("a", voc_object("cat", 6, 31, 35, 55)))
    index = open_dataset(tmp_path / "voc")
    assert index.boxes.tolist() == [[5, 30, 35, 55]]
    assert kinds(index) == {"exif-size-mismatch": 1}


@pytest.mark.parametrize("size", [(120, 80), (40, 60), (30, 20)])
def test_an_annotated_size_that_is_not_the_file_s_is_said_and_not_used(size: tuple[int, int], tmp_path: Path) -> None:
    index = coco_with(tmp_path, images={"width": size[0], "height": size[1]}, annotations={"bbox": [40, 25, 30, 10]})
    assert index.boxes.tolist() == [[40, 25, 60, 35]]  # clipped by the file of 60 x 40
    assert kinds(index) == {"size-mismatch": 1, "clipped-box": 1}
    assert diagnose(tmp_path).splits[0].boxes == 1


@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo], ids=["coco", "voc", "yolo"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>"], ids=["empty", "html"])
def test_a_file_that_is_no_image_is_left_out_by_every_reader(write: Any, content: bytes, tmp_path: Path) -> None:
    write(tmp_path)
    if write is write_yolo:
        write_image(tmp_path / "images" / "train" / "c.jpg", seed=9)
    first = sorted(tmp_path.rglob("*.jpg"))[0]
    first.write_bytes(content)
    index = open_dataset(tmp_path, split="train")
    kind = "corrupt-image" if content else "empty-file"
    assert kinds(index) == {kind: 1}
    diagnosis = diagnose(tmp_path)
    assert diagnosis.splits[0].images == len(index)
    assert kind in {problem.kind for problem in diagnosis.problems}


# --- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["a.jpg", "0012", 2**53 + 1, 2**62 + 1, 2**64 + 5, -7, 0, 3.0])
def test_images_keep_the_id_that_the_data_set_gives_them(given: Any, tmp_path: Path) -> None:
    index = coco_with(tmp_path, images={"id": given}, annotations={"image_id": given})
    assert (index.own_id(0), index.num_boxes, kinds(index)) == (given, 1, {})
    assert index.subset([0]).own_id(0) == given
    assert index.positions_of_ids()[given] == 0


@pytest.mark.parametrize(("of_image", "of_box"), [("1", 1), (1, "1"), (1, 1.0), ("12", 12)])
def test_an_id_that_is_a_text_in_one_place_and_a_number_in_another_is_found(
    of_image: Any, of_box: Any, tmp_path: Path
) -> None:
    index = coco_with(tmp_path, images={"id": of_image}, annotations={"image_id": of_box})
    assert (index.own_id(0), index.num_boxes) == (of_image, 1)


@pytest.mark.parametrize("given", [1.5, True, None, "", [1], {"$oid": "x"}])
def test_ids_that_are_none_are_refused_by_name(given: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 x image entry without an id or a file name"):
        coco_with(tmp_path, images={"id": given})


def test_an_id_that_two_files_have_leaves_both_out_with_their_boxes(tmp_path: Path) -> None:
    document = coco_document(3)
    write_coco(tmp_path, document)
    document["images"][2]["id"] = 1
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(document))
    index = open_dataset(tmp_path)
    assert (index.image_ids.tolist(), index.num_boxes) == ([2], 2)
    assert kinds(index) == {"ambiguous-image": 2, "ambiguous-box": 2, "unknown-image": 2}


def test_ids_of_several_parts_are_kept_unless_they_repeat(tmp_path: Path) -> None:
    one = coco_with(tmp_path / "a", images={"id": "x"}, annotations={"image_id": "x"})
    other = coco_with(tmp_path / "b", images={"id": "y"}, annotations={"image_id": "y"})
    assert [concatenate([one, other]).own_id(i) for i in range(2)] == ["x", "y"]
    assert not concatenate([one, other]).numbered
    assert concatenate([one, one]).numbered
    assert open_dataset(write_voc(tmp_path / "voc")).numbered


@pytest.mark.parametrize(("given", "expected"), [(7, 7), (7.0, 7), (2**53 + 1, 2**53 + 1)])
def test_categories_keep_their_ids(given: Any, expected: int, tmp_path: Path) -> None:
    index = coco_with(tmp_path, categories={"id": given}, annotations={"category_id": given})
    assert index.category_ids == tuple(sorted((expected, 2)))
    assert index.class_names[index.labels[0]] == "cat"


@pytest.mark.parametrize("given", ["7", True, 7.5, None, 2**70])
def test_category_ids_that_are_no_integers_are_refused_by_name(given: Any, tmp_path: Path) -> None:
    index = coco_with(tmp_path, categories={"id": given}, annotations={"category_id": given})
    assert kinds(index) == {"bad-category": 1, "unknown-category": 1}


# --- classes ---------------------------------------------------------------------------------------------------------


def test_categories_of_one_name_are_one_class_with_the_id_of_most_boxes(tmp_path: Path) -> None:
    document = coco_document(2)
    document["categories"] = [{"id": 0, "name": "cat"}, {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    write_coco(tmp_path, document)
    index = open_dataset(tmp_path)
    assert (index.class_names, index.category_ids, index.labels.tolist()) == (("cat", "dog"), (1, 2), [0, 1, 0, 1])
    assert kinds(index) == {"duplicate-category": 1}
    document["annotations"][0]["category_id"] = document["annotations"][1]["category_id"] = 0
    document["annotations"][3]["category_id"] = 0
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(document))
    index = open_dataset(tmp_path)
    assert (index.category_ids, index.labels.tolist()) == ((0, 2), [0, 0, 0, 0])


def test_a_category_id_of_two_names_is_left_out_with_its_boxes(tmp_path: Path) -> None:
    document = coco_document(1)
    document["categories"].append({"id": 2, "name": "cow"})
    write_coco(tmp_path, document)
    index = open_dataset(tmp_path)
    assert (index.class_names, index.num_boxes) == (("cat",), 1)
    assert kinds(index) == {"ambiguous-category": 1, "unknown-category": 1}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[no, yes]", {0: "no", 1: "yes"}),
        ("{0: off, 1: on}", {0: "off", 1: "on"}),
        ("[007, 010]", {0: "007", 1: "010"}),
        ("[1e3, 1.10]", {0: "1e3", 1: "1.10"}),
        ("[12:30, 1_000, 2020-01-02]", {0: "12:30", 1: "1_000", 2: "2020-01-02"}),
        ("[null, ~, 'true', 0x1F]", {0: "null", 1: "~", 2: "true", 3: "0x1F"}),
        ("\n  3: .inf\n  1: .5", {3: ".inf", 1: ".5"}),
    ],
)
def test_names_are_what_stands_in_the_yaml(text: str, names: dict[int, str], tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(f"train: .\nval: ~\ntest: null\nnc: {len(names)}\nnames: {text}\n")
    data = load_yolo(tmp_path / "data.yaml")
    assert (data.names, set(data.splits), data.declared_classes) == (names, {"train"}, len(names))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{0: cat, 0: dog}", "the key '0' stands twice"),
        ("{1: cat, 01: dog}", "one class id twice"),
        ("{cat: 0}", "expected a list of names or a map"),
        ("[[cat, dog]]", "the name of class 0 is"),
        ("['']", "the name of class 0 is"),
    ],
)
def test_names_that_are_none_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(f"train: .\nnames: {text}\n")
    with pytest.raises(DataError, match=message):
        load_yolo(tmp_path / "data.yaml")


# --- flags and numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "crowd"),
    [(0, False), (1, True), ("0", False), ("1", True), ("false", False), (None, False), (True, True)],
)
def test_a_crowd_is_what_is_flagged_as_one(given: Any, crowd: bool, tmp_path: Path) -> None:
    assert coco_with(tmp_path, annotations={"iscrowd": given}).crowd.tolist() == [crowd]


@pytest.mark.parametrize("given", ["perhaps", 2, [0], {}])
def test_a_flag_that_is_none_is_refused_by_name(given: Any, tmp_path: Path) -> None:
    (problem,) = coco_with(tmp_path, annotations={"iscrowd": given}).problems
    assert (problem.kind, problem.where) == ("malformed-box", "annotation 2")
    assert "iscrowd" in problem.what


@pytest.mark.parametrize(
    ("text", "expected"), [("1", True), ("0", False), ("true", True), ("Unspecified", False), ("", False), ("2", None)]
)
def test_difficult_is_what_is_flagged_as_such(text: str, expected: bool | None, tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": ["a"]})
    item = voc_object("cat", 1, 1, 9, 9).replace("<difficult>0", f"<difficult>{text}")
    (tmp_path / "Annotations" / "a.xml").write_text(voc_xml("a", item))
    index = open_dataset(tmp_path)
    assert index.difficult.tolist() == [bool(expected)]
    assert kinds(index) == ({"bad-field": 1} if expected is None else {})


def test_numbers_written_as_texts_are_numbers_and_others_are_refused(tmp_path: Path) -> None:
    index = coco_with(
        tmp_path, images={"width": "60", "height": 40.0}, annotations={"bbox": ["20", 10.0, "15", 12], "area": "99"}
    )
    assert (index.boxes.tolist(), index.areas.tolist(), kinds(index)) == ([[20, 10, 35, 22]], [99], {})
    for box in ([True, 10, 15, 12], {"x": 1}, [[20], 10, 15, 12], ["a", 1, 2, 3]):
        assert kinds(coco_with(tmp_path / str(box)[:5], annotations={"bbox": box})) == {"malformed-box": 1}
    index = coco_with(tmp_path / "fields", images={"width": "wide"}, annotations={"area": [1]})
    assert (index.num_boxes, kinds(index)) == (1, {"bad-field": 2})


# --- rows of other tasks ---------------------------------------------------------------------------------------------


def pose_row(points: int, numbers: int, *, label: int = 0, at: float = 0.5) -> str:
    values = [at, 0.5, 0.3, 0.4]
    for k in range(points):
        values += [at - 0.1 + 0.04 * k, 0.45 + 0.01 * k, *([2] if numbers == 3 else [])]
    return " ".join(map(str, (label, *values)))


@pytest.mark.parametrize(("points", "numbers"), [(4, 3), (5, 2), (5, 3), (1, 2), (17, 3)])
def test_the_box_of_a_row_with_keypoints_is_its_first_four_numbers(points: int, numbers: int, tmp_path: Path) -> None:
    rows = {f"train/{name}": pose_row(points, numbers, at=0.4 + 0.05 * k) for k, name in enumerate("abcd")}
    names = "train: images/train\nnames: [cat]\n"
    write_yolo(tmp_path, rows, f"kpt_shape: [{points}, {numbers}]\n{names}")
    index = open_dataset(tmp_path)
    np.testing.assert_allclose(index.boxes[0], [0.25 * 60, 0.3 * 40, 0.55 * 60, 0.7 * 40], rtol=1e-5)
    assert (index.num_boxes, kinds(index)) == (4, {})
    write_yolo(tmp_path, rows, names)
    if points * numbers % 2:
        assert kinds(open_dataset(tmp_path)) == {"malformed-box": 4}
    else:
        with pytest.raises(DataError, match=r"keypoints, not polygons.*kpt_shape"):
            open_dataset(tmp_path)
        assert not diagnose(tmp_path).clean


def test_polygons_and_rotated_boxes_give_their_bounds(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows, expected = {}, []
    for name in "abcdefgh":
        centre, angle, half = random.uniform(0.35, 0.65, 2), random.uniform(0, 3), random.uniform(0.05, 0.3, 2)
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points = corners @ turn.T + centre
        rows[f"train/{name}"] = "0 " + " ".join(f"{value:.6f}" for value in points.reshape(-1))
        expected.append(np.concatenate([points.min(0), points.max(0)]).clip(0, 1) * [60, 40, 60, 40])
    write_yolo(tmp_path, rows, "train: images/train\nnames: [cat]\n")
    np.testing.assert_allclose(open_dataset(tmp_path).boxes, expected, atol=1e-3)


@pytest.mark.parametrize("row", ["0 .5 .5 .2 .2 .9", "0 17 .5 .5 .2 .2", "Car 0 0 -1.5 587 173 614 200 1 2 3"])
def test_rows_with_a_score_a_track_or_of_kitti_are_refused_by_name(row: str, tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train/a": row}, "train: images/train\nnames: [cat]\n")
    assert kinds(open_dataset(tmp_path)) == {"malformed-box": 1}


def test_an_image_whose_label_file_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train/a": "0 .5 .5 .1 .1", "train/b": ""}, "train: images/train\nnames: [cat]\n")
    (tmp_path / "labels" / "train" / "a.txt").write_bytes("0 .5 .5 .1 .1".encode("utf-16"))
    index = open_dataset(tmp_path)
    assert [index.relative_path(i) for i in range(len(index))] == ["images/train/b.jpg"]
    assert kinds(index) == {"unreadable-annotations": 1}


# --- the doctor and training say the same ----------------------------------------------------------------------------


def assert_doctor_counts_what_is_read(root: Path) -> None:
    diagnosis = {split.name: (split.images, split.boxes) for split in diagnose(root).splits}
    source = find_source(root)
    for name, counts in diagnosis.items():
        index = source.open(name)
        assert counts == (len(index), index.num_boxes)


@pytest.mark.parametrize("name", ["bccd", "coco-mini", "cards", "photos"])
def test_the_doctor_counts_what_finetune_reads_on_real_data(name: str, real_data: Path) -> None:
    if not (real_data / name).is_dir():
        pytest.skip(f"{name} is not in {real_data}")
    assert_doctor_counts_what_is_read(real_data / name)


def test_cards_are_read_as_published(real_data: Path) -> None:
    if not (real_data / "cards").is_dir():
        pytest.skip(f"cards is not in {real_data}")
    index = open_dataset(real_data / "cards")
    assert available_splits(real_data / "cards") == ("train", "test")
    assert (len(index), index.num_boxes) == (363, 670)
    counts = dict(zip(index.class_names, index.class_counts().tolist(), strict=True))
    assert counts == {"nine": 115, "ten": 100, "jack": 113, "queen": 106, "king": 118, "ace": 118}
