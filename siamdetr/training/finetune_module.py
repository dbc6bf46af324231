"""Supervised training: batch → outputs → criterion → weighted sum."""

from __future__ import annotations

import torch
from torch import Tensor

from siamdetr.images.normalize import normalize
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.models.criterion.layer_losses import weighted_sum
from siamdetr.models.criterion.losses import DetectionCriterion
from siamdetr.models.detector import Detector
from siamdetr.settings.training import FinetuneSettings
from siamdetr.structures.targets import DetectionBatch
from siamdetr.training.step_module import StepModule


class FinetuneModule(StepModule):
    """A detector and its criterion."""

    def __init__(
        self, detector: Detector, settings: FinetuneSettings, preprocessing: PreprocessingSpec, total_steps: int
    ) -> None:
        super().__init__(settings, preprocessing, total_steps)
        self.detector = detector
        self.denoising = settings.denoising
        self.criterion = DetectionCriterion.of_detector(detector.settings, settings.losses, supervised=True)

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        """The weighted loss of one batch, scalar."""
        self.seed_step(batch_idx)
        batch = normalize(batch, self.preprocessing.mean, self.preprocessing.std)
        with self.naming_the_step(batch.image_ids):
            queries = self.detector.training_queries(batch.targets, self.denoising)
            losses = self.criterion(self.detector(batch.images, batch.padding, queries), batch.targets)
        total: Tensor = weighted_sum(losses, self.criterion.weights)
        self.remember(batch.image_ids, {"loss": total, **losses})
        return total

    def transfer_batch_to_device(
        self, batch: DetectionBatch, device: torch.device, dataloader_idx: int
    ) -> DetectionBatch:
        """Copy uint8 batches to the device, without waiting if the memory is pinned."""
        return batch.to(device, non_blocking=True)
