"""The exported module: from uint8 images to boxes in pixels, including normalisation and top-k."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from siamdetr.api import SiamDETR
from siamdetr.export.options import ExportOptions, exported_preprocessing
from siamdetr.images.normalize import normalize_images
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.models.attention import record_attention
from siamdetr.models.backbone.body import fold_batchnorm
from siamdetr.models.deformable.attention import DeformableAttention
from siamdetr.models.detector import Detector
from siamdetr.models.hybrid.blocks import fuse_branches
from siamdetr.models.postprocess import postprocess
from siamdetr.settings.detector import DetectorSettings
from siamdetr.structures.model import Outputs

DETECTIONS = ("boxes", "scores", "labels")
RAW = ("logits", "fractions")
ATTENTION = ("queries", "attention")


class EndToEnd(nn.Module):
    """A detector from uint8 pixels to scored boxes, with the outputs from which they are computed.

    Args:
        detector: in evaluation mode, on the CPU.
        preprocessing: of which mean and standard deviation go into the graph.
        attention: also return the attention of the last decoder layer.
    """

    def __init__(self, detector: Detector, preprocessing: PreprocessingSpec, *, attention: bool = False) -> None:
        super().__init__()
        self.detector = detector
        self.settings: DetectorSettings = detector.settings
        self.preprocessing = preprocessing
        self.attention = attention

    @property
    def takes_padding(self) -> bool:
        """Whether there is an input `valid_sizes`."""
        return self.preprocessing.mode == "letterbox"

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of all outputs of `forward`."""
        return (*DETECTIONS, *RAW, *(ATTENTION if self.attention else ()))

    def forward(self, images: Tensor, original_sizes: Tensor, valid_sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """
        Args:
            images: [N, 3, H, W] uint8 RGB, resized.
            original_sizes: [N, 2] int64 (H, W) of the images before resizing.
            valid_sizes: [N, 2] int64 (H, W) of the resized images; beyond it, right and below, is padding. None: no
            padding.
        Returns:
            boxes [N, K, 4] float32 (x0, y0, x1, y1) pixels of the original images, scores [N, K] float32, labels [N, K]
            int64; logits [N, Q, C] and boxes [N, Q, 4] (cx, cy, w, h) fractions of all queries; with `attention` the
            query [N, K] int64 of each box and the maps [N, heads, Q, h, w] of the last layer.
        """
        spec = self.preprocessing
        pixels, padding = normalize_images(images, spec.mean, spec.std), None
        if valid_sizes is not None:
            padding = padding_of(valid_sizes, images.shape[2], images.shape[3])
            pixels = pixels.masked_fill(padding[:, None], 0.0)
        maps: list[Tensor] = []
        if self.attention:
            with record_attention(self.detector) as maps:
                outputs: Outputs = self.detector(pixels, padding)
        else:
            outputs = self.detector(pixels, padding)
        logits, fractions = outputs.logits[-1], outputs.boxes[-1]
        found = postprocess(
            logits,
            fractions,
            original_sizes,
            classifier=self.settings.classifier,
            top_k=self.settings.most_detections,
        )
        detections = (found.boxes, found.scores, found.labels, logits, fractions)
        return (*detections, found.queries, maps[-1]) if self.attention else detections


def padding_of(valid_sizes: Tensor, height: int, width: int) -> Tensor:
    """[N, H, W] bool, True = padded, of images whose unpadded (H, W) are [N, 2]."""
    rows = torch.arange(height, device=valid_sizes.device)[None, :, None] >= valid_sizes[:, 0, None, None]
    columns = torch.arange(width, device=valid_sizes.device)[None, None, :] >= valid_sizes[:, 1, None, None]
    return rows | columns


def end_to_end(model: SiamDETR, options: ExportOptions) -> EndToEnd:
    """The module to export: a copy on the CPU in evaluation mode, with folded batch norms."""
    detector = copy.deepcopy(model.detector).cpu().float().eval().requires_grad_(False)
    detector.backbone = fold_batchnorm(detector.backbone)
    detector.encoder = fuse_branches(detector.encoder)
    for module in detector.modules():
        if isinstance(module, DeformableAttention):
            module.sampling = "reference" if options.sampling == "grid" else "gather"
    return EndToEnd(detector, exported_preprocessing(model.preprocessing, options), attention=options.attention).eval()
