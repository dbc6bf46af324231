"""Batches: joining, moving, pinning, normalising, and the error texts."""

from __future__ import annotations

import pytest
import torch

from siamdetr.images.normalize import normalize, normalize_images
from siamdetr.pretext.batches import ViewBatch
from siamdetr.structures.targets import DetectionBatch, Targets

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def detection_batch() -> DetectionBatch:
    padding = torch.zeros(2, 4, 6, dtype=torch.bool)
    padding[1, :, 4:] = True
    return DetectionBatch(
        images=torch.randint(0, 256, (2, 3, 4, 6), dtype=torch.uint8),
        padding=padding,
        targets=Targets.from_lists(
            [torch.rand(2, 4), torch.zeros(0, 4)], [torch.tensor([1, 0]), torch.zeros(0).long()]
        ),
        image_ids=(7, 9),
        original_sizes=torch.tensor([[4, 6], [4, 4]]),
    )


def view_batch() -> ViewBatch:
    return ViewBatch(
        images=torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8),
        padding=torch.ones(2, 4, 4, dtype=torch.bool),
        boxes=torch.rand(2, 3, 4),
        sizes=torch.full((2, 2), 4),
        crops=torch.randint(0, 256, (2, 3, 3, 5, 5), dtype=torch.uint8),
    )


def test_padding_is_zero_after_normalisation() -> None:
    batch = normalize(detection_batch(), MEAN, STD)
    assert batch.images.dtype == torch.float32
    assert (batch.images[1, :, :, 4:] == 0).all()
    assert batch.image_ids == (7, 9)


def test_normalisation_is_the_usual_one_for_images_and_crops() -> None:
    views = view_batch()
    done = normalize(views, MEAN, STD)
    wanted = (views.crops / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(done.crops, wanted)
    assert (done.images == 0).all()  # all of it is padding here


def test_images_are_normalised_once() -> None:
    with pytest.raises(ValueError, match=r"expected uint8 images, got torch.float32; were they normalised before\?"):
        normalize_images(torch.zeros(1, 3, 2, 2), MEAN, STD)


def test_batches_move_and_keep_their_counts() -> None:
    batch = detection_batch().to("meta")
    assert batch.images.is_meta
    assert batch.targets.boxes.is_meta
    assert batch.targets.counts == (2, 0)
    assert view_batch().to("meta").crops.is_meta


def test_a_batch_without_images_has_no_boxes() -> None:
    assert Targets.from_lists([], []).boxes.shape == (0, 4)


def test_boxes_and_labels_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"image 1 has 2 boxes and 3 labels"):
        Targets.from_lists([torch.rand(1, 4), torch.rand(2, 4)], [torch.zeros(1).long(), torch.zeros(3).long()])
    with pytest.raises(ValueError, match=r"got boxes of 1 images and labels of 0; give both for each"):
        Targets.from_lists([torch.rand(1, 4)], [])
    with pytest.raises(
        ValueError, match=r"counts \(1, 2\) ask for boxes \[3, 4\] and labels \[3\], got \[2, 4\] and \[2\]"
    ):
        Targets(torch.rand(2, 4), torch.zeros(2).long(), (1, 2))
