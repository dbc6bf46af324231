"""A PyTorch detector's `Inspection`: boxes of one image, and attention maps computed when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from siamdetr.images.preprocessing import ImageLike, Size, preprocess
from siamdetr.inference.attention_maps import Floats, Look, check_box, check_point
from siamdetr.inference.attention_recorder import AttentionPass, AttentionTrace, SampledPass, map_of, trace_attention
from siamdetr.inference.predictor import ScoredBoxes
from siamdetr.inference.pytorch import PyTorchPredictor, evaluating

# Deformable attention has no grid of its own; its pictures have at most this many cells on the longer side.
_MOST_CELLS = 64


@dataclass(frozen=True)
class TracedInspection:
    """See `Inspection`.

    Attributes:
        scored: of one image.
        size: (H, W) of the image, pixels.
        trace: what the attentions were asked.
        queries: [K], which query each scored box is of.
        grid: (h, w) cells of the finest feature level, padding included.
        visible: (height, width) of the image as a fraction of the padded input; 1, 1 without padding.
    """

    scored: ScoredBoxes
    size: Size
    trace: AttentionTrace
    queries: tuple[int, ...]
    grid: Size
    visible: tuple[float, float]

    @property
    def has_decoder_look(self) -> bool:
        """Always."""
        return True

    @property
    def has_encoder_look(self) -> bool:
        """Whether the encoder has layers."""
        return bool(self.trace.encoder)

    def decoder_look(self, box: int) -> Look:
        """Where the decoder looked for a box; see `Inspection`."""
        check_box(box, self.scored)
        query = self.queries[box]
        with torch.inference_mode():
            references = self.trace.references_of(0)
            own = None if references is None else references[:, query].float().cpu().numpy()
            return self._look(self.trace.decoder, query, own)

    def encoder_look(self, x: float, y: float) -> Look:
        """Where a cell of the encoder looked; of several feature levels, a cell of the finest. See `Inspection`."""
        check_point(x, y)
        if not self.trace.encoder:
            raise ValueError("this detector's encoder has no layers, hence no attention")
        row = min(int(y * self.visible[0] * self.grid[0]), self.grid[0] - 1)
        column = min(int(x * self.visible[1] * self.grid[1]), self.grid[1] - 1)
        with torch.inference_mode():
            return self._look(self.trace.encoder, row * self.grid[1] + column, None)

    def _look(self, passes: list[AttentionPass], query: int, references: Floats | None) -> Look:
        sampled = [one for one in passes if isinstance(one, SampledPass)]
        if not sampled:
            height, width = (max(1, round(n * part)) for n, part in zip(self.grid, self.visible, strict=True))
            maps = torch.stack([map_of(one, query, self.grid) for one in passes])[..., :height, :width]
            return Look(maps.cpu().numpy(), references=references)
        shrink = min(1.0, _MOST_CELLS / max(self.grid))
        height, width = (max(1, round(n * part * shrink)) for n, part in zip(self.grid, self.visible, strict=True))
        maps = torch.stack([map_of(one, query, (height, width)) for one in sampled])
        points, weights = zip(*(one.points(0, query) for one in sampled), strict=True)
        return Look(
            maps.float().cpu().numpy(),
            points=torch.stack(points).float().cpu().numpy(),
            weights=torch.stack(weights).float().cpu().numpy(),
            references=references,
        )


def inspect(predictor: PyTorchPredictor, image: ImageLike) -> TracedInspection:
    """One image through the detector, keeping what its attentions are asked.

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
        visible=(float(batch.sizes[0, 0]) / height, float(batch.sizes[0, 1]) / width),
    )
