"""`siamdetr split` as a person types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.command import run_command
from helpers.data_sets import coco_document, write_coco, write_voc

from siamdetr.data.readers.recognise import open_dataset


def split(*arguments: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    return run_command("split", *arguments, capsys=capsys, monkeypatch=monkeypatch)


def test_the_parts_are_a_data_set_whose_images_stay_where_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_coco(tmp_path / "data", coco_document(20))
    shutil.copyfile(tmp_path / "data/train/003.jpg", tmp_path / "data/train/017.jpg")
    out = tmp_path / "out"
    parts = ("--part", "train=0.7", "--part", "val=0.3")
    code, text = split(tmp_path / "data", "-o", out, *parts, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0, text
    assert "2 images are near-duplicates, in 1 groups" in text
    assert "train: 14 images; 14 cat, 14 dog" in text
    before = open_dataset(tmp_path / "data")
    read = {name: open_dataset(out, split=name) for name in ("train", "val")}
    assert sum(map(len, read.values())) == 20
    for index in read.values():
        for i in range(len(index)):
            there = before.positions_of_ids()[index.own_id(i)]
            assert index.path(i).resolve() == before.path(there).resolve()
            assert index.boxes_of(i) == pytest.approx(before.boxes_of(there), abs=1e-3)
    holders = [name for name, index in read.items() for i in range(len(index)) if index.own_id(i) in (3, 17)]
    assert len(set(holders)) == 1


def test_other_layouts_are_split_too_and_a_wrong_share_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_voc(tmp_path / "voc")
    out = tmp_path / "out"
    code, text = split(
        tmp_path / "voc", "-o", out, "--part", "train=half", "--part", "val=1", capsys=capsys, monkeypatch=monkeypatch
    )
    assert code == 2
    assert "expected NAME=SHARE" in text
    code, text = split(
        tmp_path / "voc", "-o", out, "--part", "a=1", "--part", "b=1", "--no-duplicates",
        capsys=capsys, monkeypatch=monkeypatch,
    )  # fmt: skip
    assert code == 0, text
    documents = [json.loads(file.read_text()) for file in sorted((out / "annotations").glob("*.json"))]
    assert sum(len(document["images"]) for document in documents) == len(open_dataset(tmp_path / "voc"))
    assert {category["name"] for document in documents for category in document["categories"]} == {"cat", "dog"}
    code, text = split(tmp_path / "voc", "-o", out, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 1
    assert "there is something here already" in text
