"""The parts shared by all pretext methods.

Base class, frozen teacher, features of regions and crops, losses and monitors of matched queries.

Letters in shapes: B images, P regions, Q queries, D width, F feature channels, h and w cells of the feature map.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torchvision.ops import roi_align

from siamdetr.boxes import cxcywh_to_xyxy, elementwise_iou, xyxy_to_cxcywh
from siamdetr.models.backbone.body import Backbone, fold_batchnorm, takes_blocked_layout
from siamdetr.models.backbone.pyramid import Maps, as_levels
from siamdetr.models.criterion.losses import DetectionCriterion
from siamdetr.models.criterion.matcher import Matches
from siamdetr.models.detector import Detector, Outputs
from siamdetr.settings.detector import Classifier, DetectorSettings, LossSettings
from siamdetr.structures.model import Memory
from siamdetr.structures.targets import Targets

POOLED_LEVELS = 3  # of the memory, for the global loss
POOLED_CELLS = 7  # RoIAlign grid, whose mean is the region's feature

PRETEXT_CLASSES = 2  # nothing, object; with softmax the head has a third logit, no object


class FrozenTeacher:
    """The detector's backbone without gradient, its batch norms folded into the convolutions.

    Its layout is channels last, or oneDNN's own.

    It is no module, so that no checkpoint has its copy of the weights. The copy is remade when the backbone's weights
    were loaded, moved or changed, and is kept in the precision of the autocast region it is called in.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone.eval().requires_grad_(False)
        self.folded: Backbone | None = None
        self.folded_from: tuple[object, ...] = ()

    def __call__(self, images: Tensor) -> Maps:
        """Normalised images [B, 3, H, W] -> features [B, F, h, w] of each level; half under autocast."""
        return self._run(images, lambda network, x: network(x))

    def stride8(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] normalised images -> [B, F, h, w], the map of stride 8 (`Backbone.stride8`)."""
        features = self._run(images, Backbone.stride8)
        assert isinstance(features, Tensor)
        return features

    @torch.no_grad()
    def _run(self, images: Tensor, forward: Callable[[Backbone, Tensor], Maps]) -> Maps:
        device = images.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else images.dtype
        with torch.autocast(device, enabled=False):
            network = self._network(dtype)
            if takes_blocked_layout(network, images, dtype):
                maps = forward(network, images.to(dtype).contiguous().to_mkldnn())
                return maps.to_dense() if isinstance(maps, Tensor) else tuple(one.to_dense() for one in maps)
            return forward(network, images.to(dtype, memory_format=torch.channels_last))

    def _network(self, dtype: torch.dtype) -> Backbone:
        tensors = (*self.backbone.parameters(), *self.backbone.buffers())
        state = (dtype, *((tensor.data_ptr(), tensor._version) for tensor in tensors))
        if self.folded is None or self.folded_from != state:
            self.folded = fold_batchnorm(self.backbone).to(dtype).eval().requires_grad_(False)
            self.folded_from = state
        return self.folded


class Pretext(nn.Module, abc.ABC):
    """A pretraining method: a module that holds its detector.

    The backbone is the frozen teacher and does not train.

    A method defines `forward(batch)`, which returns its losses by name, and `predict(batch)`, and adds the weights of
    its own losses to `loss_weights`.

    Args:
        detector: with the class head of pretraining (`pretext_settings`).
        losses: of the matched classes and boxes.
    """

    def __init__(self, detector: Detector, losses: LossSettings) -> None:
        super().__init__()
        self.detector = detector.train()
        self.criterion = DetectionCriterion.of_detector(detector.settings, losses, supervised=False)
        self.teacher = FrozenTeacher(detector.backbone)

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each loss that `forward` returns; whatever else it returns is a monitor."""
        return self.criterion.weights

    def train(self, mode: bool = True) -> Self:
        """As any module, but the backbone is always in eval mode."""
        super().train(mode)
        self.detector.backbone.eval()
        return self

    def load_weights(self, source: str) -> None:
        """Load what the method needs besides the backbone; most need nothing.

        Args:
            source: the run's `backbone_weights`: "imagenet", "none" or a file.
        """

    prompts: ClassVar[bool] = False  # whether queries are told regions, so that `usage` has figures

    def usage(self, batch: Any) -> dict[str, float]:
        """Whether the detector uses the regions of its queries (`siamdetr.pretext.prompt.region_usage`)."""
        return {}

    def transferred(self, detector: Detector) -> Detector:
        """A copy of the detector for model files, changed in place where the method leaves something in it."""
        return detector

    @abc.abstractmethod
    def predict(self, batch: Any) -> tuple[Outputs, Any]:
        """The decoder's outputs, and what else the losses need."""


def pretext_settings(settings: DetectorSettings, classifier: Classifier = "softmax") -> DetectorSettings:
    """The same detector with the class head of pretraining: softmax over nothing, object, no object.

    With `focal` (official DETReg over Deformable DETR) "no object" is no class of its own.
    """
    return settings.model_copy(update={"num_classes": PRETEXT_CLASSES, "classifier": classifier})


def check_detector(settings: DetectorSettings, num_regions: int, *, where: str) -> None:
    """Check that a detector can be pretrained.

    Raises:
        ValueError: its class head is not the pretext's, or its queries do not divide among the regions.
    """
    if settings.classifier != "softmax" or settings.num_classes != PRETEXT_CLASSES:
        raise ValueError(
            f"{where}: expected a detector with a softmax classifier of {PRETEXT_CLASSES} classes, got {settings.classifier} of "
            f"{settings.num_classes}; build it from pretext_settings(settings)"
        )
    if settings.num_queries % num_regions:
        raise ValueError(
            f"{where}: {settings.num_queries} queries do not divide among {num_regions} regions; choose num_queries a multiple "
            "of num_regions"
        )


def jitter_boxes(boxes: Tensor, amount: float, generator: Generator | None = None) -> Tensor:
    """Move every edge of the boxes a little, within the image.

    Args:
        boxes: [..., 4] (cx, cy, w, h) fractions.
        amount: the largest move, as a fraction of the box's width or height. As in the official code, a move is a
            normal number through a sigmoid: with .1 its standard deviation is .042.
        generator: of random numbers, on the device of the boxes; None: torch's own.
    Returns:
        [..., 4] (cx, cy, w, h) fractions within [0, 1].
    """
    noise = torch.randn(boxes.shape, device=boxes.device, dtype=boxes.dtype, generator=generator)
    width_height = boxes[..., 2:]
    moves = (noise.sigmoid() * 2 - 1) * amount * torch.cat([width_height, width_height], dim=-1)
    return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + moves).clamp(0, 1))


def region_features(features: Maps, boxes: Tensor, sizes: Tensor, strides: int | tuple[int, ...]) -> Tensor:
    """Mean feature of each region.

    RoIAlign to 7x7 cells (not `aligned`, adaptive sampling, as in the official code).

    Args:
        features: [B, F, h, w] of the padded images, of each level.
        boxes: [B, P, 4] (cx, cy, w, h) fractions of the unpadded images.
        sizes: [B, 2] (H, W) of the unpadded images, pixels.
        strides: pixels per feature cell of each level.
    Returns:
        [B, P, F] float32; the levels' features side by side.
    """
    levels, each = as_levels(features), (strides,) if isinstance(strides, int) else strides
    return torch.cat(
        [_level_features(level, boxes, sizes, stride) for level, stride in zip(levels, each, strict=True)], dim=-1
    )


def _level_features(features: Tensor, boxes: Tensor, sizes: Tensor, stride: int) -> Tensor:
    images, regions = boxes.shape[:2]
    scale = sizes.flip(-1).repeat(1, 2)[:, None].float()  # [B, 1, 4] = W, H, W, H
    corners = (cxcywh_to_xyxy(boxes.float()) * scale).flatten(0, 1)
    image = torch.arange(images, device=boxes.device).repeat_interleave(regions)[:, None].to(corners.dtype)
    rois = torch.cat([image, corners], dim=1)  # [BP, 5]
    cells: Tensor = roi_align(
        features.float(), rois, POOLED_CELLS, spatial_scale=1 / stride, sampling_ratio=-1, aligned=False
    )
    return cells.mean((2, 3)).view(images, regions, -1)


def crop_features(teacher: Callable[[Tensor], Maps], crops: Tensor, at_once: int | None = None) -> Tensor:
    """Mean feature of each crop; those of several levels side by side.

    Args:
        teacher: the frozen backbone, or its `stride8`.
        crops: [..., 3, C, C], normalised, at least one.
        at_once: crops in one forward pass, which bounds the memory; None: all.
    Returns:
        [..., F] float32.
    """
    flat = crops.flatten(0, -4)
    parts = flat.chunk(-(-len(flat) // (at_once or len(flat))))  # of one size, none above `at_once`
    means = [
        torch.cat([level.float().mean((2, 3)) for level in as_levels(teacher(part))], dim=-1)  # [crops, F]
        for part in parts
    ]
    return torch.cat(means).view(*crops.shape[:-3], -1)


def crops_at_once(images: Tensor, crops: Tensor) -> int:
    """The number of crops that have as many pixels as the images, which bounds the peak of memory."""
    return max(1, images[:, 0].numel() // (crops.shape[-1] * crops.shape[-2]))


def matched_feature_loss(head: nn.Module, wanted: Tensor, outputs: Outputs, matches: Matches) -> Tensor:
    """Loss of the features that matched queries predict, in every layer.

    Args:
        head: [K, D] decoder output of a matched query -> [K, F] feature.
        wanted: [M, F] features, in the order of the targets.
        outputs: predictions of L layers.
        matches: of the outputs.
    Returns:
        [L] squared distance of the unit vectors, summed over the matches and divided by M.
    """
    matched = outputs.hidden[matches.layer, matches.image, matches.query]  # [K, D]
    distance = cosine_distance(head(matched), wanted[matches.target])
    return distance.view(len(outputs.hidden), -1).sum(1) / max(1, len(wanted))


@torch.no_grad()
def match_monitors(outputs: Outputs, targets: Targets, matches: Matches) -> dict[str, Tensor]:
    """Monitors of the last layer.

    `monitor_matched_iou`: mean IoU of matched predictions and targets, 0 without targets.
    `monitor_query_std`: standard deviation of the decoder's output for one query over the images (needs two);
    0 = equal outputs for every image, a collapse.
    """
    last = len(outputs.boxes) - 1
    per_layer = len(matches.query) // len(outputs.boxes)
    image, query, target = (index[last * per_layer :] for index in (matches.image, matches.query, matches.target))
    monitors: dict[str, Tensor] = {}
    if outputs.hidden.shape[1] > 1:
        monitors["monitor_query_std"] = outputs.hidden[last].float().std(0, correction=0).mean()
    found, wanted = outputs.boxes[last, image, query].float(), targets.boxes[target].float()
    overlaps = elementwise_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted))
    return monitors | {"monitor_matched_iou": overlaps.sum() / max(1, len(overlaps))}


def pool_memory(memory: Memory) -> Tensor:
    """Mean over all cells of a level, padded ones included as in the official code: [B, D] float32.

    With several levels, the means of the first three (those of the backbone) side by side: [B, 3 D].
    """
    means, start = [], 0
    for height, width in memory.shapes[:POOLED_LEVELS]:
        means.append(memory.tokens.narrow(1, start, height * width).float().mean(1))
        start += height * width
    return torch.cat(means, dim=-1)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """[..., F] twice -> [...] squared distance of the unit vectors, 2 - 2 cos, in [0, 4].

    Computed in float32.
    """
    return (F.normalize(a.float(), dim=-1) - F.normalize(b.float(), dim=-1)).square().sum(-1)
