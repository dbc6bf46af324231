"""The module that is exported: pictures in, boxes in pixels out, with normalisation and selection of boxes inside."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from siamdetr.config import DetectorSettings
from siamdetr.data.targets import normalize_images
from siamdetr.detector import SiamDETR
from siamdetr.models.backbone import fold_batchnorm
from siamdetr.models.detector import Detector
from siamdetr.postprocess import postprocess
from siamdetr.preprocessing import PreprocessingSpec


class EndToEnd(nn.Module):
    """A detector from uint8 pixels to scored boxes. No padding input: the images of a batch are of one size.

    Args:
        detector: in evaluation mode, on the CPU.
        preprocessing: whose mean and standard deviation go into the graph.
    """

    def __init__(self, detector: Detector, preprocessing: PreprocessingSpec) -> None:
        super().__init__()
        self.detector = detector
        self.settings: DetectorSettings = detector.settings
        self.mean, self.std = preprocessing.mean, preprocessing.std

    def forward(self, images: Tensor, original_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            images: [N, 3, H, W] uint8 RGB, resized.
            original_sizes: [N, 2] int64 (H, W) of the images before resizing.
        Returns:
            boxes [N, K, 4] float32 (x0, y0, x1, y1) pixels of the original images, scores [N, K] float32, labels [N, K] int64.
        """
        outputs = self.detector(normalize_images(images, self.mean, self.std))
        found = postprocess(outputs.logits[-1], outputs.boxes[-1], original_sizes, classifier=self.settings.classifier)
        return found.boxes, found.scores, found.labels


def end_to_end(model: SiamDETR) -> EndToEnd:
    """What is exported of a model: a copy on the CPU in evaluation mode, batch norms folded into the convolutions."""
    detector = copy.deepcopy(model.detector).cpu().float().eval().requires_grad_(False)
    detector.backbone = fold_batchnorm(detector.backbone)
    return EndToEnd(detector, model.preprocessing).eval()
