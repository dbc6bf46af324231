"""One detector, several decoders: backbone, encoder, a variant's queries and decoder, and the heads.

A box is always sigmoid(mlp(hidden) + inverse_sigmoid(reference)); a variant without references is vanilla DETR. A new variant is
one file with a builder and one entry in `BUILDERS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siamdetr.models.attention import MultiHeadAttention
from siamdetr.models.backbone.body import Backbone
from siamdetr.models.backbone.pyramid import LevelProjections, Maps
from siamdetr.models.conditional_detr import build_conditional
from siamdetr.models.dab_deformable_detr import build_dab_deformable
from siamdetr.models.dab_detr import build_dab
from siamdetr.models.deformable.attention import DeformableAttention
from siamdetr.models.deformable.encoder import DeformableEncoder
from siamdetr.models.deformable_detr import build_deformable
from siamdetr.models.denoising import DenoisingQueries, Draws, build_dn, build_dn_deformable
from siamdetr.models.detr import build_vanilla
from siamdetr.models.heads import MLP, LayerHeads, each_head, place_boxes
from siamdetr.models.parts import VariantParts
from siamdetr.models.position import full_image_positions, image_positions
from siamdetr.settings.detector import DenoisingSettings, DetectorSettings
from siamdetr.structures.model import Decoded, Memory, Outputs, Queries
from siamdetr.structures.targets import Targets

__all__ = ["BUILDERS", "Decoded", "Detector", "Memory", "Outputs", "Queries"]

BUILDERS: dict[str, Callable[[DetectorSettings], VariantParts]] = {
    "vanilla": build_vanilla,
    "conditional": build_conditional,
    "deformable": build_deformable,
    "dab": build_dab,
    "dn": build_dn,
    "dab_deformable": build_dab_deformable,
    "dn_deformable": build_dn_deformable,
}

# In Deformable DETR the first layer adds this to the logits of width and height; alone it is 12 % of the image.
_FIRST_SIZE = -2.0
# Focal loss: every query starts at this probability for every class (Lin et al. 2017, arXiv:1708.02002, §3.3).
_PRIOR = 0.01


class Detector(nn.Module):
    """Images to class logits and boxes.

    Attributes: `backbone`, `input_projection`, `encoder`, `learned_queries`, `decoder`, `class_head`, `box_head`. Heads are shared
    by the decoder layers, unless these refine boxes layer by layer (`settings.refines`): then each has its own (`LayerHeads`).

    `region_width` is how many channels of a query a pretext may write region features into.

    Args:
        settings: all that is needed to rebuild the modules; kept as `settings`.
    Raises:
        ValueError: the width is not divisible by 4 and by the number of heads, or the backbone is unknown.
    """

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        if settings.dim % settings.heads or settings.dim % 4:
            raise ValueError(
                f"detector: expected a width (dim) divisible by 4 and by the {settings.heads} heads, "
                f"got {settings.dim}; change 'dim' or 'heads'"
            )
        self.settings = settings
        self.backbone = Backbone(settings.backbone, stride=settings.stride, pyramid=settings.levels > 1)
        variant = BUILDERS[settings.variant](settings)
        self.input_projection: nn.Module = (
            LevelProjections(self.backbone.channels, settings.dim, settings.levels)
            if variant.deformable
            else nn.Conv2d(self.backbone.num_channels, settings.dim, kernel_size=1)
        )
        self.encoder = variant.encoder
        self.learned_queries = variant.queries
        self.decoder = variant.decoder
        self._refines, self._proposes = variant.refines, variant.proposes
        self._reference_eps = variant.reference_eps
        self.region_width = settings.dim - variant.reserved_channels
        self._deformable = variant.deformable
        self.class_head, self.box_head = _build_heads(settings)
        self._initialize(boxes_start_at_reference=variant.boxes_start_at_reference)

    def forward(self, images: Tensor, padding: Tensor | None = None, queries: Queries | None = None) -> Outputs:
        """Detect objects.

        Args:
            images: [B, 3, H, W] float, normalised.
            padding: [B, H, W] bool, True = padded, not image; None = nothing is padded (the same, and cheaper).
            queries: in training those of `training_queries`; None = the learned ones.
        """
        memory = self.encode(images, padding)
        return self.decode(self.queries(images.shape[0]) if queries is None else queries, memory)

    def encode(self, images: Tensor, padding: Tensor | None = None) -> Memory:
        """Backbone and encoder; arguments as in `forward`."""
        return self.encode_features(self.backbone(images), padding)

    def encode_features(self, features: Maps, padding: Tensor | None = None) -> Memory:
        """The encoder alone, on features that are already there.

        Args:
            features: [B, C, h, w] of `self.backbone`; of a pyramid, a tuple of them.
            padding: [B, H, W] bool of the images, True = padded; it is resized to h, w.
        """
        if self._deformable:
            memory: Memory = self.encoder(self.input_projection(features), padding)
            return memory
        assert isinstance(features, Tensor)
        batch_size, _, height, width = features.shape
        tokens = self.input_projection(features).flatten(2).transpose(1, 2)  # [B, N, D]
        dim, temperature = self.settings.dim, self.settings.own_position_temperature
        if padding is None:
            cells = None
            position = full_image_positions((height, width), dim, device=tokens.device, temperature=temperature)
            position = position.expand(batch_size, -1, -1)
        else:
            grid = F.interpolate(padding[:, None].float(), size=(height, width))[:, 0] > 0.5  # [B, h, w]
            cells = grid.flatten(1)
            position = image_positions(grid, dim, temperature=temperature)
        position = position.to(tokens.dtype)
        tokens = self.encoder(tokens, position, cells)
        return Memory(tokens=tokens, position=position, padding=cells, shapes=((height, width),))

    def queries(self, batch_size: int) -> Queries:
        """The learned queries, for `batch_size` images."""
        queries: Queries = self.learned_queries(batch_size)
        return queries

    @property
    def denoises(self) -> bool:
        """Whether `training_queries` has denoising ones, which the criterion must know."""
        return isinstance(self.learned_queries, DenoisingQueries)

    def training_queries(self, targets: Targets, settings: DenoisingSettings, draws: Draws | None = None) -> Queries:
        """The learned queries, after the denoising ones where the variant has such (`dn`, `dn_deformable`).

        Args:
            targets: boxes and labels of the images that will be decoded, on the detector's device.
            settings: how many denoising groups, how much noise.
            draws: the random numbers of the noise; None: from torch's own generator.
        """
        if isinstance(self.learned_queries, DenoisingQueries):
            return self.learned_queries.denoise(targets, settings, draws)
        return self.queries(len(targets.counts))

    def decode(self, queries: Queries, memory: Memory) -> Outputs:
        """Decoder and heads: predictions of every decoder layer, those of denoising queries apart."""
        heads = (self.class_head, self.box_head) if self._proposes else (self.box_head,) if self._refines else ()
        decoded: Decoded = self.decoder(queries, memory, *heads)
        boxes = decoded.boxes
        if boxes is None:
            boxes = place_boxes(self.box_head(decoded.hidden), decoded.references, eps=self._reference_eps)
        logits, hidden, first = self.class_head(decoded.hidden), decoded.hidden, queries.num_denoising
        if first == 0:
            return Outputs(logits=logits, boxes=boxes, hidden=hidden, proposals=decoded.proposals)
        denoised = Outputs(logits[:, :, :first], boxes[:, :, :first], hidden[:, :, :first])
        return Outputs(logits[:, :, first:], boxes[:, :, first:], hidden[:, :, first:], denoised)

    @torch.no_grad()
    def _initialize(self, *, boxes_start_at_reference: bool) -> None:
        """As the official code: Xavier in the transformer, defaults elsewhere, a prior for focal loss."""
        for module in (self.encoder, self.decoder):
            for parameter in module.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)
            for part in module.modules():
                if isinstance(part, MultiHeadAttention | DeformableAttention | DeformableEncoder):
                    part.reset_parameters()
        for head in each_head(self.class_head):
            assert isinstance(head, nn.Linear)
            if self.settings.classifier == "focal":
                nn.init.constant_(head.bias, -math.log((1 - _PRIOR) / _PRIOR))
        for index, head in enumerate(each_head(self.box_head)):
            assert isinstance(head, MLP)
            last = head.layers[-1]
            assert isinstance(last, nn.Linear)
            if boxes_start_at_reference:
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
            if self._deformable and index == 0 and not self.settings.two_stage:
                last.bias[2:] = _FIRST_SIZE  # small first boxes, also where a reference has a size


def _build_heads(settings: DetectorSettings) -> tuple[nn.Module, nn.Module]:
    """Class and box head: shared by the layers, or one each and one for proposals."""

    def class_head() -> nn.Module:
        return nn.Linear(settings.dim, settings.num_classes + (settings.classifier == "softmax"))

    def box_head() -> nn.Module:
        return MLP(settings.dim, settings.dim, 4, num_layers=3)

    if not settings.refines:
        return class_head(), box_head()
    count = settings.decoder_layers + settings.two_stage
    return LayerHeads(class_head() for _ in range(count)), LayerHeads(box_head() for _ in range(count))
