"""A study whose unlabelled images hold scored ones is refused, by content."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.data_sets import coco_document, write_coco, write_image

from siamdetr.errors import StudyError
from siamdetr.study.runner import open_grid
from siamdetr.study.settings import StudySettings


def study(root: Path, *, allow: bool = False) -> StudySettings:
    return StudySettings(
        study="data-efficiency",
        data=(str(root / "data"),),
        unlabelled=(str(root / "more"),),
        methods=("updetr",),
        fast=True,
        allow_overlap=allow,
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_coco(tmp_path / "data", coco_document(4))
    for split, first in (("val", 10), ("test", 20)):
        write_coco(tmp_path / "data", coco_document(2, first=first), split=split)
    write_image(tmp_path / "more" / "new.jpg", seed=99)
    shutil.copy(tmp_path / "data" / "train" / "001.jpg", tmp_path / "more" / "of_train.jpg")
    return tmp_path


def test_images_of_the_train_part_may_be_pretrained_on(root: Path) -> None:
    open_grid(study(root), root / "out", write=False)


@pytest.mark.parametrize("held_out", ["val/010.jpg", "test/021.jpg"])
def test_images_of_val_and_test_may_not_unless_it_is_said(held_out: str, root: Path) -> None:
    shutil.copy(root / "data" / held_out, root / "more" / "renamed.jpg")
    with pytest.raises(StudyError, match=rf"1 of 3 images .*\n.*renamed.jpg is .*{held_out}\n.*--allow-overlap"):
        open_grid(study(root), root / "out", write=False)
    open_grid(study(root, allow=True), root / "out", write=False)
