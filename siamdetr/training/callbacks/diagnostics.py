"""Pictures of a pretraining run: samples of the method, and predictions against targets over time.

The predictions are always on the same few images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from siamdetr.boxes import cxcywh_to_xyxy, elementwise_iou
from siamdetr.drawing.pretext import draw_joined_views, draw_matches, draw_regions
from siamdetr.files import DIAGNOSTICS
from siamdetr.models.criterion.matcher import match
from siamdetr.pretext.batches import PretextBatch, PretextSample
from siamdetr.system.atomic_file import atomic_write
from siamdetr.training.pretrain_module import PretrainModule
from siamdetr.training.step_module import completed_step

NUM_SAMPLES = 3
NUM_CHECKED = 16  # images on which is measured whether regions are used
NUM_DRAWN = 5  # regions of an image whose predictions are drawn: more would hide each other
WHEN = (0.0, 0.1, 0.3, 0.6, 1.0)  # shares of the run after which predictions are drawn
_WIDTH = 640  # pixels at most: the report carries the pictures inside


class Diagnostics(Callback):
    """Draws into the run folder; the report shows the pictures.

    It draws no random numbers, so that training does not change.

    The samples are those of epoch 0 of a few images spread over the data; the detector is in eval mode meanwhile. With
    several processes the first one draws.

    Args:
        folder: of the run.
        dataset: of the run.
        length: images in it.
        collate: samples to a batch.
        total_steps: of the run.
    """

    def __init__(
        self,
        folder: Path,
        dataset: Dataset[Any],
        length: int,
        collate: Callable[[list[Any]], PretextBatch],
        *,
        total_steps: int,
    ) -> None:
        self.folder = folder / DIAGNOSTICS
        self.dataset, self.collate = dataset, collate
        self.images = np.unique(np.linspace(0, length - 1, NUM_SAMPLES).round().astype(int)).tolist()
        self.steps = frozenset(round(share * total_steps) for share in WHEN)
        self.samples: list[PretextSample] = []
        self.checked = np.unique(np.linspace(0, length - 1, NUM_CHECKED).round().astype(int)).tolist()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Draw the samples, and the predictions before training."""
        if not trainer.is_global_zero:
            return
        self.folder.mkdir(exist_ok=True)
        self.samples = [self.dataset[0, i] for i in self.images]
        for i, sample in enumerate(self.samples):
            self._save(_shown(sample), f"sample-{i}")
        if (
            pl_module.step == 0 and 0 in self.steps
        ):  # of a resumed run it is there, from before its checkpoint was written
            self._look(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Draw the current predictions when a share of the run is reached."""
        if trainer.is_global_zero and completed_step(trainer, batch_idx) and pl_module.step in self.steps:
            self._look(trainer, pl_module)

    @torch.no_grad()
    def _look(self, trainer: Any, module: PretrainModule) -> None:
        """Draw predictions on a few images; on more images, measure whether regions are used."""
        pretext, was_training = module.pretext, module.pretext.training
        pretext.eval()
        self._draw(module)
        figures = (
            pretext.usage(self._batch(module, [self.dataset[0, i] for i in self.checked])) if pretext.prompts else {}
        )
        pretext.train(was_training)
        for logger in trainer.loggers if figures else ():
            logger.log_metrics(figures, step=module.step)

    def _batch(self, module: PretrainModule, samples: list[PretextSample]) -> PretextBatch:
        return self.collate(samples).to(module.device).normalized(module.preprocessing.normalization)

    def _draw(self, module: PretrainModule) -> None:
        pretext = module.pretext
        batch = self._batch(module, self.samples)
        outputs, _ = pretext.predict(batch)
        targets = batch.targets
        boxes, logits = outputs.boxes[-1:].float(), outputs.logits[-1:].float()
        criterion = pretext.criterion
        matches = match(logits, boxes, targets, criterion.settings, criterion.classifier)
        for i, sample in enumerate(self.samples):  # of a pair of views the first
            here = torch.nonzero(matches.image == i)[:, 0]
            # In the order of the regions: each keeps its place, and so its colour, from step to step.
            here = here[matches.target[here].argsort()]
            found, wanted = boxes[0, i, matches.query[here]], targets.boxes[matches.target[here]].float()
            pixels, _ = sample.panels[0]
            name = f"matched-{i}-{module.step:07d}"
            for old in self.folder.glob(f"{name}-*.jpg"):
                old.unlink()  # of this step, from before the run was resumed
            picture = draw_matches(pixels, _numpy(wanted[:NUM_DRAWN]), _numpy(found[:NUM_DRAWN]))
            self._save(picture, f"{name}-{_mean_iou(found, wanted):.3f}")

    def _save(self, picture: Image.Image, name: str) -> None:
        picture.thumbnail((_WIDTH, _WIDTH))
        atomic_write(self.folder / f"{name}.jpg", lambda file: picture.save(file, "JPEG", quality=85))


def _shown(sample: PretextSample) -> Image.Image:
    views, boxes = zip(*sample.panels, strict=True)
    return draw_joined_views(views, boxes) if len(views) > 1 else draw_regions(views[0], boxes[0])


def _mean_iou(found: Tensor, wanted: Tensor) -> float:
    if len(found) == 0:
        return 0.0
    return float(elementwise_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted)).mean())


def _numpy(boxes: Tensor) -> NDArray[np.float32]:
    return np.asarray(boxes.cpu().numpy(), dtype=np.float32)
