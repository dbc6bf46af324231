"""One detector, several variants.

Backbone, encoder, queries, decoder and heads, composed of what a variant's builder supplies.

A new variant is one file with a builder and one entry in `siamdetr.settings.registry`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import Tensor, nn

from siamdetr.models.backbone.body import Backbone
from siamdetr.models.backbone.pyramid import Maps
from siamdetr.models.denoising import Draws
from siamdetr.models.heads import Heads
from siamdetr.models.parts import LearnedPoints, VariantParts
from siamdetr.settings.detector import DenoisingSettings, DetectorSettings
from siamdetr.structures.model import Decoded, Memory, Outputs, Queries
from siamdetr.structures.targets import Targets

__all__ = ["Decoded", "Detector", "Memory", "Outputs", "Queries"]

Builder = Callable[[DetectorSettings, tuple[int, ...]], VariantParts]


class Detector(nn.Module):
    """Images to class logits and boxes.

    Attributes: `backbone`, `input_projection`, `encoder`, `learned_queries`, `decoder`, `class_head`, `box_head`. Heads
    are shared by the decoder layers, or `LayerHeads`, one a layer.

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
        self.backbone = Backbone(
            settings.backbone,
            stride=settings.stride,
            pyramid=settings.levels > 1,
            train_batchnorm=settings.train_batchnorm,
        )
        parts = find_builder(settings.entry.builder)(settings, self.backbone.channels)
        self.input_projection = parts.input_projection
        self.encoder = parts.encoder
        self.learned_queries = parts.queries
        self.decoder = parts.decoder
        self.class_head, self.box_head = parts.heads.class_head, parts.heads.box_head

    def forward(self, images: Tensor, padding: Tensor | None = None, queries: Queries | None = None) -> Outputs:
        """Detect objects.

        Args:
            images: [B, 3, H, W] float, normalised.
            padding: [B, H, W] bool, True = padded, not image; None = nothing is padded (the same, and cheaper).
            queries: in training the result of `training_queries`; None = the learned queries.
        """
        memory = self.encode(images, padding)
        return self.decode(self.queries(images.shape[0]) if queries is None else queries, memory)

    def encode(self, images: Tensor, padding: Tensor | None = None) -> Memory:
        """Backbone and encoder; arguments as in `forward`."""
        return self.encode_features(self.backbone(images), padding)

    def encode_features(self, features: Maps, padding: Tensor | None = None) -> Memory:
        """Run the encoder on given features.

        Args:
            features: [B, C, h, w] of `self.backbone`; of a pyramid, a tuple of them.
            padding: [B, H, W] bool of the images, True = padded; it is resized to h, w.
        """
        memory: Memory = self.encoder(self.input_projection(features), padding)
        return memory

    def queries(self, batch_size: int) -> Queries:
        """The learned queries, for `batch_size` images."""
        queries: Queries = self.learned_queries(batch_size)
        return queries

    def training_queries(self, targets: Targets, settings: DenoisingSettings, draws: Draws | None = None) -> Queries:
        """The learned queries, preceded by denoising queries in detectors that have them."""
        return self.learned_queries.for_training(targets, settings, draws)

    @property
    def denoises(self) -> bool:
        """Whether `training_queries` has denoising ones, which the criterion must know."""
        return self.settings.entry.denoises

    @property
    def region_width(self) -> int:
        """Number of channels of a query into which a pretext may write region features."""
        return self.learned_queries.region_width

    @property
    def heads(self) -> Heads:
        """The prediction heads, as the decoder needs them."""
        return Heads(self.class_head, self.box_head)

    def first_references(self, queries: Queries) -> Tensor | None:
        """The references [B, Q, 2 | 4] of the first layer, which `Queries.anchors` may replace.

        None: the decoder has none, or chooses them itself.
        """
        if queries.anchors is not None:
            return queries.anchors
        if self.settings.learns_references and isinstance(self.decoder, LearnedPoints):
            return self.decoder.start(queries)
        return None

    def decode(self, queries: Queries, memory: Memory) -> Outputs:
        """Decoder and heads: predictions of every decoder layer, with those of denoising queries separate."""
        decoded: Decoded = self.decoder(queries, memory, self.heads)
        logits, boxes, hidden = self.class_head(decoded.hidden), decoded.boxes, decoded.hidden
        first = queries.num_denoising
        if first == 0:
            return Outputs(logits=logits, boxes=boxes, hidden=hidden, proposals=decoded.proposals)
        denoised = Outputs(logits[:, :, :first], boxes[:, :, :first], hidden[:, :, :first])
        return Outputs(logits[:, :, first:], boxes[:, :, first:], hidden[:, :, first:], denoised, decoded.proposals)


def find_builder(name: str) -> Builder:
    """Import the function named by "module:function"."""
    module, _, function = name.partition(":")
    builder: Builder = getattr(importlib.import_module(module), function)
    return builder
