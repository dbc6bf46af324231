"""Inspect one image with any model of ours."""

from __future__ import annotations

from siamdetr.images.preprocessing import ImageLike, preprocess
from siamdetr.inference.attention_maps import Inspection, RecordedInspection
from siamdetr.inference.predictor import Predictor


def inspect_image(model: Predictor, image: ImageLike) -> Inspection:
    """Detections of an image and, if the model records it, the attention behind them.

    Raises:
        ImageError: the image cannot be used.
    """
    own = getattr(model, "inspect", None)
    if own is not None:
        seen: Inspection = own(image)
        return seen
    batch = preprocess([image], model.preprocessing)
    size = (int(batch.original_sizes[0, 0]), int(batch.original_sizes[0, 1]))
    return RecordedInspection(model.predict_batch(batch), size, None)
