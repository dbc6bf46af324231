"""Data sets and their order.

Items are functions of (seed, epoch, index), batches have the agreed form, unreadable files are skipped and counted.
"""

from __future__ import annotations

import itertools
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.data_sets import coco_document, write_coco, write_image
from PIL import Image
from torch.utils.data import DataLoader

from siamdetr.data.dataset import DetectionDataset, collate_detection
from siamdetr.data.index import DetectionIndex
from siamdetr.data.readers.recognise import open_dataset
from siamdetr.data.sampler import Sample, SampleOrder
from siamdetr.data.transforms import FinetuneTransform
from siamdetr.errors import DataError
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.pretext.datasets import RegionDataset, SiameseDataset, collate_regions, collate_views
from siamdetr.proposals.compute import compute_proposals
from siamdetr.proposals.methods import Recipe
from siamdetr.settings.pretext import DETRegSettings, SiameseSettings

SETTINGS = SiameseSettings(size=48, num_regions=3, crop_size=16, proposals="random")
PLAIN = FinetuneTransform(PreprocessingSpec.from_size(32), "none")
DETR = FinetuneTransform(PreprocessingSpec.from_size(32), "detr")


def folder_of_images(root: Path, count: int) -> DetectionIndex:
    for i in range(count):
        write_image(root / f"{i:03}.jpg", seed=i, size=(60 + i, 40))
    return open_dataset(root)


def labelled(root: Path, count: int = 6) -> DetectionIndex:
    write_coco(root, coco_document(count))
    return open_dataset(root, split="train")


def batches(dataset: Any, collate: Any, workers: int, epoch: int = 0) -> list[Any]:
    numbers = epoch_of(SampleOrder(len(dataset), seed=1, batch_size=2), epoch)
    return list(DataLoader(dataset, batch_sampler=numbers, num_workers=workers, collate_fn=collate))


def epoch_of(order: SampleOrder, epoch: int) -> list[list[Sample]]:
    """Its batches."""
    return [order.batch(epoch * order.num_batches + step) for step in range(order.num_batches)]


def test_a_labelled_item_has_boxes_as_fractions_and_no_crowds(tmp_path: Path) -> None:
    document = coco_document(2)
    document["annotations"][1]["iscrowd"] = 1
    write_coco(tmp_path, document)
    index = open_dataset(tmp_path, split="train")
    item = DetectionDataset(index, PLAIN)[0, 0]
    assert item.image.shape == (3, 32, 48)
    assert item.image.dtype == torch.uint8
    assert item.original_size == (40, 60)
    assert item.labels.tolist() == [0]
    x0, y0, x1, y1 = index.boxes_of(0)[0].tolist()
    expected = [(x0 + x1) / 2 / 60, (y0 + y1) / 2 / 40, (x1 - x0) / 60, (y1 - y0) / 40]
    assert item.boxes[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_detection_batches_are_padded_right_and_below(tmp_path: Path) -> None:
    index = folder_of_images(tmp_path, 3)
    dataset = DetectionDataset(index, PLAIN)
    items = [dataset[0, i] for i in range(3)]
    batch = collate_detection(items)
    assert batch.images.shape == (3, 3, 32, max(item.image.shape[2] for item in items))
    assert batch.image_ids == (1, 2, 3)
    assert batch.targets.counts == (0, 0, 0)
    assert batch.original_sizes.tolist() == [[40, 60], [40, 61], [40, 62]]
    for i, item in enumerate(items):
        width = item.image.shape[2]
        assert torch.equal(batch.images[i, :, :, :width], item.image)
        assert not batch.padding[i, :, :width].any()
        assert batch.padding[i, :, width:].all()
        assert not batch.images[i, :, :, width:].any()


def test_view_batches_hold_all_first_views_then_all_second_ones(tmp_path: Path) -> None:
    dataset = SiameseDataset(folder_of_images(tmp_path, 3), None, SETTINGS)
    items = [dataset[0, i] for i in range(3)]
    batch = collate_views(items)
    assert batch.images.shape[:2] == (6, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.boxes.shape == (6, 3, 4)
    assert batch.crops.shape == (6, 3, 3, 16, 16)
    for row, (which, i) in enumerate(itertools.product(range(2), range(3))):
        height, width = items[i].images[which].shape[:2]
        assert batch.sizes[row].tolist() == [height, width]
        assert torch.equal(batch.images[row, :, :height, :width], torch.from_numpy(items[i].images[which].copy()).permute(2, 0, 1))  # fmt: skip
        assert int((~batch.padding[row]).sum()) == height * width
        assert np.array_equal(batch.boxes[row].numpy(), items[i].boxes[which])
        assert np.array_equal(batch.crops[row].permute(0, 2, 3, 1).numpy(), items[i].crops[which])


def test_samples_are_the_same_with_and_without_workers(tmp_path: Path) -> None:
    views = SiameseDataset(folder_of_images(tmp_path / "plain", 5), None, SETTINGS, seed=3)
    detection = DetectionDataset(labelled(tmp_path / "coco"), DETR, seed=3)
    for epoch in range(2):
        for a, b in zip(batches(views, collate_views, 0, epoch), batches(views, collate_views, 2, epoch), strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.crops, b.crops)
            assert torch.equal(a.boxes, b.boxes)
        pair = (batches(detection, collate_detection, workers, epoch) for workers in (0, 2))
        for a, b in zip(*pair, strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.targets.boxes, b.targets.boxes)
            assert a.image_ids == b.image_ids


def test_an_item_depends_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    index = folder_of_images(tmp_path, 3)
    dataset = SiameseDataset(index, None, SETTINGS, seed=1)
    first = dataset[4, 1].crops
    torch.manual_seed(9)
    dataset[0, 0], dataset[5, 2]
    assert np.array_equal(dataset[4, 1].crops, first)
    assert not np.array_equal(dataset[5, 1].crops, first)
    assert not np.array_equal(SiameseDataset(index, None, SETTINGS, seed=2)[4, 1].crops, first)


def test_stored_proposals_are_used_and_missing_ones_computed_on_the_way(tmp_path: Path) -> None:
    index = folder_of_images(tmp_path / "images", 3)
    settings = SETTINGS.model_copy(update={"proposals": "edgeboxes"})
    store = compute_proposals(index, tmp_path / "store.arrow")
    partial = compute_proposals(index.subset([0]), tmp_path / "partial.arrow")
    for i in range(3):
        one, other = (SiameseDataset(index, which, settings)[0, i] for which in (store, partial))
        assert one.boxes == pytest.approx(other.boxes, abs=1e-3)
    assert not np.allclose(one.boxes, SiameseDataset(index, None, settings)[0, 2].boxes)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_without_stored_proposals_are_counted_and_the_first_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    index = folder_of_images(tmp_path / "images", 5)
    store = compute_proposals(index.subset([0, 1]), tmp_path / "p.arrow", recipe=Recipe("selective-search"))
    dataset = RegionDataset(index, store, DETRegSettings(num_regions=3, size=48, crop_size=16))
    caplog.clear()  # of what computing says
    with caplog.at_level(logging.WARNING):
        batches(dataset, collate_regions, workers=workers)
        batches(dataset, collate_regions, workers=workers)
    assert dataset.num_without_proposals == 3
    assert dataset.num_unreadable == 0
    if workers == 0:
        (message,) = (record.message for record in caplog.records)
        assert re.search(
            r"00\d\.jpg: has no proposals in .*p\.arrow \(selective-search\); it gets EdgeBoxes whenever it is read\. Others",
            message,
        )
    assert RegionDataset(index, None, DETRegSettings(size=48)).num_without_proposals == 0


def test_an_unreadable_image_gives_way_to_the_next_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = folder_of_images(tmp_path, 5)
    index.path(1).write_bytes(b"broken")
    index.path(4).unlink()
    dataset = DetectionDataset(index, PLAIN)
    with caplog.at_level(logging.WARNING):
        ids = [dataset[epoch, i].image_id for epoch in range(2) for i in range(5)]
    assert ids == [1, 3, 3, 4, 1] * 2
    assert dataset.num_unreadable == 2
    messages = [record.message for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith(f"{index.path(1)}: not an image, or none of the formats that are decoded")
    assert messages[1].startswith(f"{index.path(4)}: no such file; the next image takes its place")


def test_deep_images_are_scaled_with_one_word_about_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for name in ("a", "b"):
        Image.fromarray(grey << 4).save(tmp_path / f"{name}.tif")
    dataset = DetectionDataset(open_dataset(tmp_path), PLAIN)
    with caplog.at_level(logging.WARNING):
        levels = [len(dataset[0, i].image.unique()) for i in range(2)]
    assert min(levels) > 100
    (message,) = (record.message for record in caplog.records)
    assert "a.tif: more than 8 bits a channel (values of 12 bits, divided by 16)" in message


def test_workers_count_unreadable_images_together(tmp_path: Path) -> None:
    index = folder_of_images(tmp_path, 8)
    index.path(0).unlink()
    index.path(5).unlink()
    dataset = DetectionDataset(index, PLAIN)
    batches(dataset, collate_detection, workers=2)
    assert dataset.num_unreadable == 2


def test_too_many_unreadable_images_stop_the_run(tmp_path: Path) -> None:
    index = folder_of_images(tmp_path, 8)
    for i in range(2, 7):
        index.path(i).unlink()
    dataset = DetectionDataset(index, PLAIN)
    with pytest.raises(DataError, match=r"4 of 8 images could not be read, at most 3 are put up with; the last one: .*005\.jpg.*doctor"):  # fmt: skip
        dataset[0, 2]


def test_no_readable_image_at_all_is_said(tmp_path: Path) -> None:
    index = folder_of_images(tmp_path, 2)
    for i in range(2):
        index.path(i).unlink()
    with pytest.raises(DataError, match=r"none of 2 images can be read"):
        DetectionDataset(index, PLAIN)[0, 0]
    with pytest.raises(DataError, match=r"got zero images, expected at least one"):
        SiameseDataset(index.subset([]), None, SETTINGS)


def test_an_epoch_is_a_permutation_and_a_function_of_seed_and_epoch() -> None:
    order = SampleOrder(10, seed=0, batch_size=5)
    epochs = [[sample for batch in epoch_of(order, epoch) for sample in batch] for epoch in (0, 1, 0)]
    assert epochs[0] == epochs[2] != epochs[1]
    assert sorted(epochs[0]) == [(0, i) for i in range(10)]
    assert sorted(epochs[1]) == [(1, i) for i in range(10)]


@pytest.mark.parametrize("length", [7, 12, 3])
def test_processes_share_each_step_of_one_process(length: int) -> None:
    whole = epoch_of(SampleOrder(length, seed=5, batch_size=4), 2)
    parts = [epoch_of(SampleOrder(length, seed=5, batch_size=2, rank=rank, world_size=2), 2) for rank in range(2)]
    assert [[*first, *second] for first, second in zip(*parts, strict=True)] == whole
    assert {i for batch in whole for _, i in batch} == set(range(length))
    assert all(len(batch) == 4 for batch in whole)


def test_a_batch_is_a_function_of_its_number_wherever_training_goes_on() -> None:
    order = SampleOrder(10, seed=0, batch_size=2)
    whole = [order.batch(number) for number in range(20)]
    again = SampleOrder(10, seed=0, batch_size=2)
    assert [again.batch(number) for number in range(13, 20)] == whole[13:]
    assert again.batch(4) == whole[4]


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="got a data set of 0 images, expected at least one"):
        SampleOrder(0, seed=0, batch_size=1)
    with pytest.raises(ValueError, match="got batch_size 0, expected at least 1"):
        SampleOrder(1, seed=0, batch_size=0)
    with pytest.raises(ValueError, match=r"got rank 2 of 2 processes, expected 0\.\.1"):
        SampleOrder(1, seed=0, batch_size=1, rank=2, world_size=2)
