"""The `Inspection` of a PyTorch detector.

Detections of one image, and attention maps computed on demand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from siamdetr.images.preprocessing import ImageLike, Size, preprocess
from siamdetr.inference.attention_maps import AttentionMaps, Floats, check_box, check_point
from siamdetr.inference.attention_recorder import (
    AttentionPass,
    AttentionTrace,
    DensePass,
    SampledPass,
    map_of,
    trace_attention,
)
from siamdetr.inference.predictor import ScoredBoxes
from siamdetr.inference.pytorch import PyTorchPredictor, evaluating

# Deformable attention has no grid; its maps are drawn with at most this many cells on the longer side.
_MOST_CELLS = 64


@dataclass(frozen=True)
class TracedInspection:
    """An `Inspection` that computes attention maps from recorded queries and keys.

    Attributes:
        scored: of one image.
        size: (H, W) of the image, pixels.
        trace: the recorded attentions.
        queries: [K], the query of each scored box.
        grid: (h, w) cells of the finest feature level, padding included.
        encoder_grid: (h, w) cells of the level with the encoder's self-attention, padding included.
        visible: (height, width) of the image as a fraction of the padded input; 1, 1 without padding.
    """

    scored: ScoredBoxes
    size: Size
    trace: AttentionTrace
    queries: tuple[int, ...]
    grid: Size
    encoder_grid: Size
    visible: tuple[float, float]

    @property
    def has_decoder_attention(self) -> bool:
        """Always True: every detector has a decoder."""
        return True

    @property
    def has_encoder_attention(self) -> bool:
        """Whether the encoder has layers."""
        return bool(self.trace.encoder)

    def decoder_attention(self, box: int) -> AttentionMaps:
        """The decoder's attention for a box; see `Inspection`."""
        check_box(box, self.scored)
        query = self.queries[box]
        with torch.inference_mode():
            references = self.trace.references_of(0)
            own = None if references is None else references[:, query].float().cpu().numpy()
            return self._attention_of(self.trace.decoder, query, own, self.grid)

    def encoder_attention(self, x: float, y: float) -> AttentionMaps:
        """The encoder's attention of one cell of the finest feature level (RT-DETR: the coarsest).

        See `Inspection`.
        """
        check_point(x, y)
        if not self.trace.encoder:
            raise ValueError("this detector's encoder has no layers, hence no attention")
        height, width = self.encoder_grid
        row = min(int(y * self.visible[0] * height), height - 1)
        column = min(int(x * self.visible[1] * width), width - 1)
        with torch.inference_mode():
            return self._attention_of(self.trace.encoder, row * width + column, None, self.encoder_grid)

    def _attention_of(
        self, passes: list[AttentionPass], query: int, references: Floats | None, grid: Size
    ) -> AttentionMaps:
        sampled = [one for one in passes if isinstance(one, SampledPass)]
        if not sampled:
            height, width = (max(1, round(n * part)) for n, part in zip(grid, self.visible, strict=True))
            maps = torch.stack([map_of(one, query, grid) for one in passes])[..., :height, :width]
            return AttentionMaps(maps.cpu().numpy(), references=references)
        shrink = min(1.0, _MOST_CELLS / max(self.grid))
        height, width = (max(1, round(n * part * shrink)) for n, part in zip(self.grid, self.visible, strict=True))
        maps = torch.stack([map_of(one, query, (height, width)) for one in sampled])
        points, weights = zip(*(one.points(0, query) for one in sampled), strict=True)
        return AttentionMaps(
            maps.float().cpu().numpy(),
            points=torch.stack(points).float().cpu().numpy(),
            weights=torch.stack(weights).float().cpu().numpy(),
            references=references,
        )


def _encoder_grid(passes: list[AttentionPass], shapes: tuple[Size, ...]) -> Size:
    """The level of dense self-attention, with RT-DETR a coarse one; of sampled attention the finest level."""
    keys = {one.key.shape[2] for one in passes if isinstance(one, DensePass)}
    return next((shape for shape in shapes if shape[0] * shape[1] in keys), shapes[0])


def inspect(predictor: PyTorchPredictor, image: ImageLike) -> TracedInspection:
    """Predict on one image, and record the attentions.

    Raises:
        ImageError: the image cannot be used.
    """
    batch = preprocess([image], predictor.preprocessing)
    detector = predictor.detector
    with evaluating(detector), torch.inference_mode(), trace_attention(detector) as trace:
        memory, outputs = predictor.encode_and_decode(batch)
        scored, queries = predictor.score(outputs, batch)
    height, width = batch.images.shape[2:]
    return TracedInspection(
        scored=scored,
        size=(int(batch.original_sizes[0, 0]), int(batch.original_sizes[0, 1])),
        trace=trace,
        queries=tuple(int(query) for query in np.asarray(queries)[0]),
        grid=memory.shapes[0],
        encoder_grid=_encoder_grid(trace.encoder, memory.shapes),
        visible=(float(batch.sizes[0, 0]) / height, float(batch.sizes[0, 1]) / width),
    )
