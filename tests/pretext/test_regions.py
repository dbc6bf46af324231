"""Samples of one view: regions show what their boxes say, and counts are those of the method.

A sample is a function of (seed, epoch, index).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pictures import coordinate_image
from PIL import Image

from siamdetr.data.readers.recognise import open_dataset
from siamdetr.images.normalize import normalize
from siamdetr.images.randomness import sample_random
from siamdetr.pretext import regions
from siamdetr.pretext.datasets import RegionDataset, collate_regions
from siamdetr.pretext.regions import make_regions, random_patches
from siamdetr.settings.pretext import DETRegSettings, UPDETRSettings

PATCHES = UPDETRSettings(num_regions=4, size=96, crop_size=32)
PROPOSED = DETRegSettings(num_regions=5, size=96, crop_size=32)
EDGE = np.asarray([[0.1, 0.1, 0.4, 0.5], [0.5, 0.2, 0.9, 0.9], [0.0, 0.6, 0.3, 1.0]], dtype=np.float32)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops without photometric augmentation."""
    monkeypatch.setattr(regions, "augment", lambda pixels, rng: pixels)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("settings", [PATCHES, PATCHES.model_copy(update={"augment": "detr"}), PROPOSED])
@pytest.mark.parametrize("proposals", [None, EDGE])
def test_a_crop_shows_what_its_box_holds(
    settings: UPDETRSettings | DETRegSettings, proposals: np.ndarray | None
) -> None:
    for i in range(20):
        sample = make_regions(coordinate_image(), proposals, settings, sample_random(0, 0, i))
        height, width = sample.image.shape[:2]
        low, high = sample.boxes[:, :2] - sample.boxes[:, 2:] / 2, sample.boxes[:, :2] + sample.boxes[:, 2:] / 2
        assert low.min() >= -1e-6
        assert high.max() <= 1 + 1e-6
        for p, crop in enumerate(sample.crops):
            x0, y0 = np.floor(low[p] * (width, height)).astype(int)
            x1, y1 = np.ceil(high[p] * (width, height)).astype(int)
            inside = sample.image[y0:y1, x0:x1, :2].reshape(-1, 2).mean(axis=0)
            assert crop[..., :2].reshape(-1, 2).mean(axis=0) == pytest.approx(inside, abs=5)


def test_updetr_has_its_full_number_of_regions_whatever_is_proposed() -> None:
    settings = PATCHES.model_copy(update={"augment": "detr", "proposals": "edgeboxes"})
    for proposals in (EDGE, EDGE[:1], EDGE[:0], None):
        for i in range(10):
            sample = make_regions(coordinate_image(), proposals, settings, sample_random(0, 0, i))
            assert sample.boxes.shape == (4, 4)
            assert sample.crops.shape == (4, 32, 32, 3)
            assert sample.boxes[:, 2:].min() > 0


def test_detreg_takes_the_first_proposals_and_makes_none_up() -> None:
    whole = PROPOSED.model_copy(update={"augment": "none"})
    many = np.tile(EDGE, (4, 1))
    counts = [len(make_regions(coordinate_image(), p, whole, sample_random(0, 0, 0)).boxes) for p in (many, EDGE)]
    assert counts == [5, 3]
    found = make_regions(coordinate_image(), EDGE, whole, sample_random(0, 0, 0)).boxes
    assert found[0] == pytest.approx([0.25, 0.3, 0.3, 0.4])
    nothing = make_regions(coordinate_image(), EDGE[:0], PROPOSED, sample_random(0, 0, 0))
    assert nothing.boxes.shape == (0, 4)
    assert nothing.crops.shape == (0, 32, 32, 3)


def test_random_patches_are_the_official_ones() -> None:
    """Sides uniform between 8 pixels and 8 less than the image's; inside the image."""
    boxes = random_patches((100, 200), 4000, sample_random(0, 0, 0)) * [200, 100, 200, 100]
    sides = boxes[:, 2:] - boxes[:, :2]
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 200
    assert boxes[:, 3].max() <= 100
    assert sides.min(axis=0) == pytest.approx([8, 8], abs=1)
    assert sides.max(axis=0) == pytest.approx([192, 92], abs=1)
    assert sides.mean(axis=0) == pytest.approx([100, 50], rel=0.03)
    assert random_patches((5, 6), 3, sample_random(0, 0, 0)).shape == (3, 4)


def test_images_keep_to_the_published_scales_and_updetr_never_flips() -> None:
    settings = UPDETRSettings(num_regions=1)
    images = [make_regions(coordinate_image(), None, settings, sample_random(0, 0, i)).image for i in range(60)]
    assert {min(image.shape[:2]) for image in images} <= {320, 336, 352, 368, 400, 416, 432, 448, 464, 480}
    assert max(max(image.shape[:2]) for image in images) <= 600
    assert all(image[5, -1, 0] > image[5, 0, 0] for image in images)
    proposed = [make_regions(coordinate_image(), EDGE, PROPOSED, sample_random(0, 0, i)).image for i in range(100)]
    assert 30 < sum(image[5, -1, 0] > image[5, 0, 0] for image in proposed) < 70
    assert min(image[5, :, 0].max() - image[5, :, 0].min() for image in proposed) < 200  # some are crops


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 256, (60 + 10 * i, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


def test_a_sample_is_a_function_of_seed_epoch_and_index(folder: Path) -> None:
    first, second = (RegionDataset(open_dataset(folder), None, PATCHES, seed=3) for _ in range(2))
    second[0, 0]  # what was read before plays no part
    a, b, other = first[1, 2], second[1, 2], first[2, 2]
    assert np.array_equal(a.image, b.image)
    assert np.array_equal(a.boxes, b.boxes)
    assert np.array_equal(a.crops, b.crops)
    assert not np.array_equal(a.boxes, other.boxes)
    assert len(first) == 3
    assert first.num_unreadable == 0


def test_a_batch_keeps_regions_in_the_order_of_images_and_is_normalised_on_the_device(folder: Path) -> None:
    data = RegionDataset(open_dataset(folder), None, PATCHES)
    samples = [data[0, i] for i in range(3)]
    nothing = make_regions(coordinate_image(), EDGE[:0], PROPOSED, sample_random(0, 0, 0))
    batch = collate_regions([samples[0], nothing, *samples[1:]])
    assert batch.targets.counts == (4, 0, 4, 4)
    assert batch.targets.labels.unique().tolist() == [1]
    assert batch.images.dtype == batch.crops.dtype == torch.uint8
    assert torch.equal(batch.crops[4].permute(1, 2, 0), torch.from_numpy(samples[1].crops[0]))
    assert torch.equal(batch.targets.boxes[:4], torch.from_numpy(samples[0].boxes))
    ready = normalize(batch.to("cpu"), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert ready.crops.dtype == torch.float32
    assert float(ready.images[ready.padding[:, None].expand_as(ready.images)].abs().sum()) == 0
    torch.testing.assert_close(ready.crops, batch.crops / 127.5 - 1)
