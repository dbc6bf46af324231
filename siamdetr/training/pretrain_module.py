"""Self-supervised training: two views → pretext losses → weighted sum."""

from __future__ import annotations

import torch
from torch import Tensor

from siamdetr.data.targets import ViewBatch, normalize
from siamdetr.losses import weighted_sum
from siamdetr.models.detector import Detector
from siamdetr.preprocessing import PreprocessingSpec
from siamdetr.pretext import PRETEXTS
from siamdetr.training.module import StepModule
from siamdetr.training.settings import PretrainSettings


class PretrainModule(StepModule):
    """A pretext, which holds the detector."""

    def __init__(
        self, detector: Detector, settings: PretrainSettings, preprocessing: PreprocessingSpec, total_steps: int
    ) -> None:
        super().__init__(settings, total_steps)
        self.preprocessing = preprocessing
        self.pretext = PRETEXTS[settings.pretext](detector, settings.siamese)

    @property
    def detector(self) -> Detector:  # type: ignore[override]
        """The detector that is pretrained."""
        return self.pretext.detector

    def training_step(self, batch: ViewBatch, batch_idx: int) -> Tensor:
        """The weighted loss of one batch of view pairs, scalar."""
        self.seed_step(batch_idx)
        batch = normalize(batch, self.preprocessing.mean, self.preprocessing.std)
        images = self.images_of(batch_idx)
        with self.naming_the_step(images):
            figures = self.pretext(batch)
        total: Tensor = weighted_sum(figures, self.pretext.loss_weights)
        self.remember(images, {"loss": total, **figures})
        return total

    def transfer_batch_to_device(self, batch: ViewBatch, device: torch.device, dataloader_idx: int) -> ViewBatch:
        """uint8 to the device, without waiting where the memory is pinned."""
        return batch.to(device, non_blocking=True)
