"""Strong augmentation and repeat factors: boxes follow objects, items depend on their key only.

All epochs have the same length.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training_data import finetune_settings, write_data
from PIL import Image

from siamdetr.data.dataset import DetectionDataset
from siamdetr.data.index import DetectionIndex
from siamdetr.data.readers.recognise import open_dataset
from siamdetr.data.repeat_factors import repeat_factors, repeat_positions
from siamdetr.data.strong import LabelledImage, augment_strongly, cut_out, jitter_scale, mosaic, paste
from siamdetr.data.transforms import FinetuneTransform
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.training.finetune import finetune
from siamdetr.training.finetune_setup import balanced, strong_epochs
from siamdetr.training.loop import Length

RED, BLUE = (230, 20, 20), (20, 20, 230)


def scene(seed: int, size: tuple[int, int] = (160, 120)) -> LabelledImage:
    """One or two squares, red of label 0 and blue of label 1, that do not touch, on noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(90, 140, (size[1], size[0], 3), dtype=np.uint8)
    boxes, labels = [], []
    for label in range(1 + seed % 2):
        x, y, side = 10 + 80 * label + int(rng.integers(20)), int(rng.integers(10, 60)), int(rng.integers(20, 40))
        pixels[y : y + side, x : x + side] = (RED, BLUE)[label]
        boxes.append([x, y, x + side, y + side])
        labels.append(label)
    return LabelledImage(Image.fromarray(pixels), np.array(boxes, dtype=np.float32), np.array(labels, dtype=np.int32))


def check(found: LabelledImage) -> None:
    """Check that boxes lie in the image, and that their centres have the colour of their label.

    A centre may be hidden by another object.
    """
    width, height = found.image.size
    assert found.boxes.shape == (len(found.labels), 4)
    assert found.boxes.dtype == np.float32
    assert found.labels.dtype == np.int32
    pixels = np.asarray(found.image).astype(int)
    for box, label in zip(found.boxes, found.labels, strict=True):
        x0, y0, x1, y1 = box
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        inside = pixels[int(y0) : max(int(y0) + 1, int(y1)), int(x0) : max(int(x0) + 1, int(x1))]
        own = inside[..., 0] - inside[..., 2] if label == 0 else inside[..., 2] - inside[..., 0]
        assert (own > 60).mean() > 0.5, (box, label)


@pytest.mark.parametrize("seed", range(40))
def test_boxes_stay_on_their_objects(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [scene(seed + i, size) for i, size in enumerate([(160, 120), (170, 160), (200, 130), (180, 150)])]
    for image in images:
        check(image)
    joined = mosaic(images, 180, rng)
    assert joined.image.size == (180, 180)
    check(joined)
    check(jitter_scale(images[0], rng))
    pasted = paste(images[0], images[1], rng)
    assert len(images[0].labels) <= len(pasted.labels) <= len(images[0].labels) + len(images[1].labels)
    check(pasted)
    assert len(cut_out(images[0], rng).labels) <= len(images[0].labels)


def test_images_without_boxes_and_tiny_images_pass_through_everything() -> None:
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    for size in ((1, 1), (3, 90), (64, 48)):
        empty = LabelledImage(Image.new("RGB", size), *nothing)
        for seed in range(30):
            others = (empty, scene(seed))
            found = augment_strongly(empty, lambda i, others=others: others[i], 2, 32, np.random.default_rng(seed))  # type: ignore[misc]
            assert found.boxes.shape == (len(found.labels), 4)


def test_an_object_that_is_cut_off_or_hidden_but_for_a_quarter_is_dropped() -> None:
    whole = scene(2)
    for seed in range(200):
        found = jitter_scale(whole, np.random.default_rng(seed))
        if not len(found.labels):
            break
    else:
        raise AssertionError("no jitter of 200 moved the object out of the image")


@pytest.fixture
def index(tmp_path: Path) -> DetectionIndex:
    return open_dataset(write_data(tmp_path / "data", train=6, empty=(3,)), split="train")


def test_an_item_is_a_function_of_its_key_and_the_last_epochs_are_plain(index: DetectionIndex) -> None:
    transform = FinetuneTransform(PreprocessingSpec.from_size(64, 64), "detr")
    strong, again = (DetectionDataset(index, transform, 7, strong_until=2) for _ in range(2))
    plain = DetectionDataset(index, transform, 7)
    changed = 0
    for key in [(epoch, i) for epoch in range(3) for i in range(6)]:
        a, b, c = strong[key], again[key], plain[key]
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.boxes, b.boxes)
        assert a.image_id == c.image_id
        same = a.image.shape == c.image.shape and torch.equal(a.image, c.image)
        assert same or key[0] < 2
        changed += not same
        assert bool(((a.boxes >= 0) & (a.boxes <= 1)).all())
    assert changed > 8


@pytest.mark.parametrize(("steps", "epochs"), [(100, 9), (15, 1), (10, 1), (195, 18), (42, 4)])
def test_the_last_tenth_of_the_epochs_is_plain(steps: int, epochs: int) -> None:
    assert strong_epochs(Length(steps, 10)) == epochs


def test_images_of_rare_classes_come_more_often_and_the_others_stay(index: DetectionIndex) -> None:
    import dataclasses

    labels = index.labels.copy()
    labels[:] = 0
    labels[-1] = 1  # in one of six images
    rare = dataclasses.replace(index, labels=labels)
    factors = repeat_factors(rare, 0.6)
    assert factors.tolist()[:5] == [1, 1, 1, 1, 1]  # also the image without boxes
    assert factors[5] == pytest.approx(np.sqrt(0.6 * 6))
    positions = repeat_positions(factors)
    assert len(positions) == round(factors.sum())
    assert set(positions.tolist()) == set(range(6))
    assert np.bincount(positions).tolist()[:5] == [1, 1, 1, 1, 1]
    assert repeat_positions(np.ones(6)).tolist() == list(range(6))
    assert repeat_factors(rare, 0.0).tolist() == [1] * 6
    settings = finetune_settings(Path("data"), Path("run"))
    assert balanced(rare, settings) is rare
    assert len(balanced(rare, settings.model_copy(update={"repeat_threshold": 0.6}))) == len(positions) > len(rare)


def test_a_run_with_both_is_the_same_with_another_number_of_workers(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=5, val=2)
    changes = {"images": {"size": 64, "max_size": 64, "augment": "strong"}, "repeat_threshold": 0.9, "steps": 4}
    runs = [finetune(finetune_settings(data, tmp_path / str(n), **changes, workers=n)) for n in (0, 1)]
    import siamdetr

    a, b = (siamdetr.SiamDETR.load(run.folder).detector.state_dict() for run in runs)
    assert all(torch.equal(a[name], b[name]) for name in a)
