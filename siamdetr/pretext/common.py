"""What pretext methods share: a frozen teacher, features of regions and crops, and queries that know a region.

Letters in shapes: B images, P regions, Q queries, D width, F feature channels, h and w cells of the feature map.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.ops import roi_align

from siamdetr.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from siamdetr.config import DetectorSettings
from siamdetr.data.targets import Targets
from siamdetr.models.backbone import Backbone, fold_batchnorm
from siamdetr.models.pyramid import Maps, as_levels
from siamdetr.models.structures import Memory, Queries

POOLED_LEVELS = 3  # of the memory, for the global loss
POOLED_CELLS = 7  # RoIAlign grid, whose mean is the region's feature

# The class head of pretraining has three logits: class 0 never occurs, 1 is "an object", 2 is "no object".
PRETEXT_CLASSES = 2
OBJECT_LABEL = 1


class FrozenTeacher:
    """The detector's backbone without gradient, BatchNorm folded into the convolutions, channels last.

    Not a module, so that its copy of the weights is in no checkpoint. The copy is remade when the backbone's weights were
    loaded, moved or changed, and is kept in the precision of the autocast region it is called in.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone.requires_grad_(False)
        self.folded: Backbone | None = None
        self.folded_from: tuple[object, ...] = ()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Maps:
        """[B, 3, H, W] normalised images -> [B, F, h, w] features, of each level (in half precision under autocast)."""
        device = images.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else images.dtype
        with torch.autocast(device, enabled=False):
            features: Maps = self._network(dtype)(images.to(dtype, memory_format=torch.channels_last))
        return features

    def _network(self, dtype: torch.dtype) -> Backbone:
        tensors = (*self.backbone.parameters(), *self.backbone.buffers())
        state = (dtype, *((tensor.data_ptr(), tensor._version) for tensor in tensors))
        if self.folded is None or self.folded_from != state:
            self.folded = fold_batchnorm(self.backbone).to(dtype).eval().requires_grad_(False)
            self.folded_from = state
        return self.folded


def pretext_settings(settings: DetectorSettings) -> DetectorSettings:
    """The same detector with the class head of pretraining: softmax over nothing, object, no object."""
    return settings.model_copy(update={"num_classes": PRETEXT_CLASSES, "classifier": "softmax"})


def check_detector(settings: DetectorSettings, num_regions: int, *, where: str) -> None:
    """Refuse a detector that cannot be pretrained.

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


def object_targets(boxes: Tensor) -> Targets:
    """[B, P, 4] regions as detection targets, all labelled "an object"."""
    images, regions = boxes.shape[:2]
    labels = torch.full((images * regions,), OBJECT_LABEL, device=boxes.device)
    return Targets(boxes.flatten(0, 1), labels, (regions,) * images)


def jitter_boxes(boxes: Tensor, amount: float, generator: Generator | None = None) -> Tensor:
    """Move every edge a little, and keep the box inside the image.

    Args:
        boxes: [..., 4] (cx, cy, w, h) fractions.
        amount: the largest move, as a fraction of the box's width or height. The moves are bell-shaped, a normal number
            through a sigmoid, as in the official code: with .1 their standard deviation is .042.
        generator: of random numbers, on the device of the boxes; None: torch's own.
    Returns:
        [..., 4] (cx, cy, w, h) fractions within [0, 1].
    """
    noise = torch.randn(boxes.shape, device=boxes.device, dtype=boxes.dtype, generator=generator)
    width_height = boxes[..., 2:]
    moves = (noise.sigmoid() * 2 - 1) * amount * torch.cat([width_height, width_height], dim=-1)
    return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + moves).clamp(0, 1))


def region_features(features: Maps, boxes: Tensor, sizes: Tensor, strides: int | tuple[int, ...]) -> Tensor:
    """Mean feature of each region: RoIAlign to 7x7 cells (not `aligned`, adaptive sampling, as in the official code).

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


def crop_features(teacher: FrozenTeacher, crops: Tensor, at_once: int | None = None) -> Tensor:
    """Mean feature of each crop; those of several levels side by side.

    Args:
        teacher: the frozen backbone.
        crops: [B, P, 3, C, C], normalised.
        at_once: crops in one forward pass, which bounds the memory; None: all.
    Returns:
        [B, P, F] float32.
    """
    flat = crops.flatten(0, 1)
    parts = flat.chunk(-(-len(flat) // (at_once or len(flat))))  # of one size, none above `at_once`
    means = [
        torch.cat([level.float().mean((2, 3)) for level in as_levels(teacher(part))], dim=-1)  # [crops, F]
        for part in parts
    ]
    return torch.cat(means).view(*crops.shape[:2], -1)


def condition_queries(queries: Queries, regions: Tensor) -> Queries:
    """Give every query a region: the first Q/P queries the first region, and so on.

    Args:
        queries: of B images.
        regions: [B, P, detector.region_width] projected region features; P divides Q.
    Returns:
        The queries with the region added to their position. Ours: to their content where a variant has no learned
        position (DAB, DN), which the paper leaves open; DN's last channel, which marks denoising queries, stays as it is.
    """
    repeated = regions.repeat_interleave(queries.content.shape[1] // regions.shape[1], dim=1)  # [B, Q, D]
    if queries.position is None:
        reserved = queries.content.shape[-1] - regions.shape[-1]
        return dataclasses.replace(queries, content=queries.content + F.pad(repeated, (0, reserved)))
    return dataclasses.replace(queries, position=queries.position + repeated)


def pool_memory(memory: Memory) -> Tensor:
    """Mean over all cells of a level, padded ones included as in the official code: [B, D] float32.

    Of several levels the first three, those of the backbone, side by side: [B, 3 D].
    """
    means, start = [], 0
    for height, width in memory.shapes[:POOLED_LEVELS]:
        means.append(memory.tokens.narrow(1, start, height * width).float().mean(1))
        start += height * width
    return torch.cat(means, dim=-1)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """[..., F] twice -> [...] squared distance of the unit vectors, 2 - 2 cos, in [0, 4]; computed in float32."""
    return (F.normalize(a.float(), dim=-1) - F.normalize(b.float(), dim=-1)).square().sum(-1)
