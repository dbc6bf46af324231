"""What the doctor says of a data set is what finetuning then does with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.odd_data import ODD_DATA, Writer
from helpers.training_data import finetune_settings

from siamdetr.data.dataset import DetectionDataset
from siamdetr.data.doctor import Diagnosis, SplitStatistics, diagnose
from siamdetr.data.index import DetectionIndex
from siamdetr.data.problems import KINDS, count_by_kind
from siamdetr.data.splits import common_name
from siamdetr.data.transforms import FinetuneTransform
from siamdetr.errors import DataError
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.training.open_datasets import open_labelled


def split_of(said: Diagnosis, *wanted: str) -> SplitStatistics:
    """The first of the splits that are called so; of undivided data the whole."""
    found = [split for name in wanted for split in said.splits if common_name(split.name) == name]
    return (found or [*said.splits])[0]


def check_part(split: SplitStatistics, part: DetectionIndex) -> int:
    """Compare the figures of a split with the images of one; returns how many of these cannot be read."""
    assert (split.images, split.boxes, split.crowds) == (len(part), part.num_boxes, part.crowd.sum())
    assert split.images_without_boxes == (part.box_counts() == 0).sum()
    assert split.class_counts == dict(zip(part.class_names, part.class_counts().tolist(), strict=True))
    dataset = DetectionDataset(part, FinetuneTransform(PreprocessingSpec.from_size(64, 64), "none"))
    items = [dataset[0, i] for i in range(len(part))]
    if dataset.num_unreadable == 0:
        assert sum(len(item.labels) for item in items) == split.boxes - split.crowds
    return dataset.num_unreadable


def check(root: Path, output: Path) -> None:
    said = diagnose(root)
    if said.clean and any(split.boxes for split in said.splits):
        used = open_labelled(finetune_settings(root, output))
    else:
        try:
            used = open_labelled(finetune_settings(root, output))
        except DataError:
            return
    unreadable = check_part(split_of(said, "train", "trainval"), used.train)
    parts = [used.train]
    if used.val is not None:
        unreadable += check_part(split_of(said, "val", "test"), used.val)
        parts.append(used.val)
    kinds = count_by_kind(said.problems)
    assert unreadable == kinds.get("truncated-image", 0)
    if len(parts) == len(said.splits):
        told = count_by_kind([problem for part in parts for problem in part.problems])
        left_out = {kind: count for kind, count in kinds.items() if KINDS[kind].severity == "error"}
        left_out.pop("truncated-image", None)  # seen when the pixels are read
        assert {kind: count for kind, count in told.items() if KINDS[kind].severity == "error"} == left_out


@pytest.mark.parametrize("write", ODD_DATA, ids=lambda write: write.__name__)
def test_finetuning_does_what_the_doctor_says(write: Writer, tmp_path: Path) -> None:
    write(tmp_path / "data")
    check(tmp_path / "data", tmp_path / "run")


@pytest.mark.parametrize("name", ["bccd", "coco-mini", "cards/train", "cards/test", "photos"])
def test_finetuning_does_what_the_doctor_says_of_real_data(name: str, real_data: Path, tmp_path: Path) -> None:
    if not (real_data / name).is_dir():
        pytest.skip(f"{name} is not in {real_data}")
    check(real_data / name, tmp_path / "run")
