"""Any model of ours asked about one image."""

from __future__ import annotations

from siamdetr.api import Model, SiamDETR
from siamdetr.export.runtime import OnnxDetector
from siamdetr.images.preprocessing import ImageLike, preprocess
from siamdetr.inference.attention_maps import Inspection, RecordedInspection


def inspect_image(model: SiamDETR | Model, image: ImageLike) -> Inspection:
    """Detections of an image and, if the model records it, the attention behind them.

    Raises:
        ImageError: the image cannot be used.
    """
    if isinstance(model, SiamDETR | OnnxDetector):
        return model.inspect(image)
    batch = preprocess([image], model.preprocessing)
    size = (int(batch.original_sizes[0, 0]), int(batch.original_sizes[0, 1]))
    return RecordedInspection(model.predict_batch(batch), size, None)
