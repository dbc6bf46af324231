"""Which parts of a graph eight bits harm most, measured on images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from siamdetr.export.int8.calibrate import feeds_of
from siamdetr.export.int8.quantize import Calibrated, to_int8
from siamdetr.export.sessions import Array
from siamdetr.images.preprocessing import ImageLike, PreprocessingSpec

PARTS = 8
_IMAGES = 4


def parts_by_harm(
    source: Calibrated, images: Sequence[ImageLike], spec: PreprocessingSpec, folder: Path
) -> list[tuple[str, ...]]:
    """The layers in up to `PARTS` parts that follow each other in the graph, the most harmful part first.

    A part's harm is the mean square by which the logits change when this part alone is quantised. Each class's
    logits are compared in the order of their size, because a two-stage detector's queries may change places.

    Args:
        source: the graph and its ranges.
        images: of which the first four are used.
        spec: their preprocessing.
        folder: for temporary files.
    """
    feeds = list(feeds_of(source.graph, images[:_IMAGES], spec))
    expected = _logits(source.graph, feeds)
    harm = {}
    for part in np.array_split(source.layers, min(PARTS, len(source.layers))):
        layers = tuple(part.tolist())
        alone = to_int8(source, folder, kept=set(source.layers) - set(layers)).graph
        found = _logits(alone, feeds)
        harm[layers] = sum(float(np.square(a - b).mean()) for a, b in zip(expected, found, strict=True))
    return sorted(harm, key=harm.__getitem__, reverse=True)


def _logits(graph: onnx.ModelProto, feeds: Sequence[dict[str, Array]]) -> list[Array]:
    """[1, Q, C] of each image, sorted along the queries."""
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.sort(session.run(["logits"], feed)[0], axis=1) for feed in feeds]
