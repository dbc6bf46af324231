"""Self-supervised training: images without labels → losses of a pretext → weighted sum."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.models.criterion.layer_losses import weighted_sum
from siamdetr.models.detector import Detector
from siamdetr.models.heads import each_head
from siamdetr.pretext.batches import PretextBatch
from siamdetr.pretext.common import Pretext
from siamdetr.pretext.registry import PRETEXTS
from siamdetr.pretext.run_settings import PretrainSettings
from siamdetr.structures.targets import OBJECT_LABEL
from siamdetr.training.step_module import StepModule


class PretrainModule(StepModule):
    """A pretext, which holds the detector."""

    def __init__(
        self, detector: Detector, settings: PretrainSettings, preprocessing: PreprocessingSpec, total_steps: int
    ) -> None:
        super().__init__(settings, preprocessing, total_steps)
        self.pretext: Pretext = PRETEXTS[settings.method].build(detector, settings.of_method)

    @property
    def detector(self) -> Detector:  # type: ignore[override]
        """The detector that is pretrained."""
        return self.pretext.detector

    def training_step(self, batch: PretextBatch, batch_idx: int) -> Tensor:
        """The weighted loss of one batch, scalar."""
        self.seed_step(batch_idx)
        batch = batch.normalized(self.preprocessing.normalization)
        images = self.image_ids_of(self.batch_number(batch_idx))
        with self.naming_the_step(images):
            figures = self.pretext(batch)
        total: Tensor = weighted_sum(figures, self.pretext.loss_weights)
        self.remember(images, {"loss": total, **figures})
        return total

    def transfer_batch_to_device(self, batch: PretextBatch, device: torch.device, dataloader_idx: int) -> PretextBatch:
        """Copy uint8 batches to the device, without waiting if the memory is pinned."""
        return batch.to(device, non_blocking=True)


def class_agnostic(detector: Detector) -> Detector:
    """A copy of a pretrained detector as a detector of one class, "object".

    The pretext's class head has three logits (nothing, object, no object), of which the first is never a target. The
    copy keeps the other two, or with focal loss, which has no logit for "no object", that of "object". So a pretrained
    model predicts, is scored and is exported like any other. In the proposals of a two-stage Deformable DETR all
    objects are class 0: there the first and the last logit are kept.
    """
    copied = copy.deepcopy(detector)
    no_object = (detector.settings.num_classes,) if detector.settings.classifier == "softmax" else ()
    kept = [(OBJECT_LABEL, *no_object)] * len(each_head(detector.class_head))
    if detector.settings.two_stage:  # whose proposals know objects only, unlike those of DINO
        kept[-1] = (0, *no_object)
    for head, rows in zip(each_head(copied.class_head), kept, strict=True):
        assert isinstance(head, nn.Linear)
        head.weight = nn.Parameter(head.weight.detach()[list(rows)])
        head.bias = nn.Parameter(head.bias.detach()[list(rows)])
        head.out_features = len(rows)
    copied.learned_queries.keep_labels(OBJECT_LABEL, OBJECT_LABEL + 1)
    copied.settings = detector.settings.model_copy(update={"num_classes": 1})
    return copied
