"""Any model of ours asked about one image."""

from __future__ import annotations

from siamdetr.detector import Model, SiamDETR
from siamdetr.evaluation.inspection import Inspection, RecordedInspection
from siamdetr.export.runtime import OnnxDetector
from siamdetr.preprocessing import ImageLike, preprocess


def inspect_image(model: SiamDETR | Model, image: ImageLike) -> Inspection:
    """What a model found in an image and, where it can tell, where it looked.

    Raises:
        ImageError: the image cannot be used.
    """
    if isinstance(model, SiamDETR | OnnxDetector):
        return model.inspect(image)
    batch = preprocess([image], model.preprocessing)
    size = (int(batch.original_sizes[0, 0]), int(batch.original_sizes[0, 1]))
    return RecordedInspection(model.predict_batch(batch), size, None)
