"""Gradient accumulation: batches of one step train what one batch of all their images trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.training_data import DETECTOR
from torch import Tensor

from siamdetr.models.criterion.layer_losses import weighted_sum
from siamdetr.models.criterion.losses import DetectionCriterion
from siamdetr.models.criterion.normalisers import boxes_per_process
from siamdetr.models.detector import Detector
from siamdetr.pretext.batches import RegionBatch, ViewBatch
from siamdetr.settings.detector import DetectorSettings, LossSettings
from siamdetr.structures.targets import Targets, in_one_window
from siamdetr.training.loader import BatchStream

COUNTS = (7, 0, 1, 2)  # boxes of four images: the halves differ


def targets_of(counts: tuple[int, ...], first: int = 0) -> Targets:
    """Boxes whose places depend on their number, counted from `first`."""
    boxes = [torch.tensor([0.2 + 0.05 * i, 0.5, 0.1, 0.1 + 0.02 * i]) for i in range(first, first + sum(counts))]
    rows = torch.stack(boxes) if boxes else torch.zeros(0, 4)
    return Targets(rows, torch.arange(first, first + sum(counts)) % 2, counts)


def gradient(classifier: str, size: int, *, window: bool = True) -> Tensor:
    """Of the mean loss of batches of `size` images, as one step of training makes it."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {**DETECTOR, "dropout": 0.0, "num_classes": 2, "classifier": classifier}
    detector = Detector(DetectorSettings.model_validate(shape)).train()
    criterion = DetectionCriterion(LossSettings(), detector.settings.classifier, 2, num_layers=2)
    images, padding = torch.rand(4, 3, 64, 64), torch.zeros(4, 64, 64, dtype=torch.bool)
    parts = [range(start, start + size) for start in range(0, 4, size)]
    batches = [
        RegionBatch(
            images[list(p)], padding[list(p)], targets_of(COUNTS[p[0] : p[-1] + 1], sum(COUNTS[: p[0]])), images[:0]
        )
        for p in parts
    ]
    for batch in in_one_window(batches) if window else batches:
        outputs = detector(batch.images, batch.padding, detector.training_queries(batch.targets, None))
        (weighted_sum(criterion(outputs, batch.targets), criterion.weights) / len(parts)).backward()
    return torch.cat([p.grad.flatten() for p in detector.parameters() if p.grad is not None])


@pytest.mark.parametrize("classifier", ["softmax", "focal"])
@pytest.mark.parametrize("size", [1, 2])
def test_batches_of_one_step_have_the_gradient_of_one_batch(classifier: str, size: int) -> None:
    whole = gradient(classifier, 4)
    torch.testing.assert_close(gradient(classifier, size), whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))
    apart = gradient(classifier, size, window=False)
    assert float(torch.cosine_similarity(apart, whole, dim=0)) < 0.999  # the halves differ enough to show it


def test_a_window_without_boxes_is_divided_by_one_box() -> None:
    window = in_one_window([RegionBatch(*[torch.zeros(1)] * 2, targets_of((0,)), torch.zeros(0)) for _ in range(4)])
    assert [boxes_per_process(batch.targets) for batch in window] == [0.25] * 4


def test_batches_without_targets_stay_as_they_are() -> None:
    views = [ViewBatch(*[torch.zeros(1)] * 5) for _ in range(2)]
    assert in_one_window(views)[0] is views[0]


def test_the_loader_gives_whole_windows() -> None:
    class Order:
        num_batches = 6

        def batch(self, number: int) -> list[tuple[int, int]]:
            return [(0, number)]

    class Data(torch.utils.data.Dataset[int]):
        def __getitem__(self, sample: Any) -> int:
            return int(sample[1])

    def collate(numbers: list[int]) -> RegionBatch:
        return RegionBatch(*[torch.zeros(1)] * 2, targets_of((numbers[0],)), torch.zeros(0))

    order: Any = Order()
    stream = BatchStream(Data(), collate, order, start=2, stop=6, workers=0, timeout=0, pin=False, window=2)
    assert [batch.targets.window for batch in stream] == [((2,), (3,))] * 2 + [((4,), (5,))] * 2
    assert [batch.targets.counts for batch in stream] == [(2,), (3,), (4,), (5,)]
