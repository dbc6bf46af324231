"""Read and resize the images of a data set for scoring, several at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import ImageError
from siamdetr.images.preprocessing import PreprocessingSpec, Sample, prepare_sample, resized_size
from siamdetr.system.ordered_map import ordered_map

logger = logging.getLogger(__name__)


def read_samples(index: DetectionIndex, spec: PreprocessingSpec, workers: int) -> Iterator[tuple[int, Sample]]:
    """Yield position and prepared image of every readable image.

    Images of equal resized size follow each other.
    """
    sizes = [resized_size((int(h), int(w)), spec) if h and w else (0, 0) for h, w in index.sizes]
    order = sorted(range(len(index)), key=lambda i: sizes[i])

    def read(i: int) -> tuple[int, Sample] | None:
        try:
            return i, prepare_sample(index.path(i), spec)
        except ImageError as error:
            logger.warning("Scored as an image without detections: %s", error)
            return None

    yield from (sample for sample in ordered_map(read, order, workers) if sample is not None)
