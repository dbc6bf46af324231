"""Resolve the settings of finetuning from the data and the starting model."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np

from siamdetr.data.index import DetectionIndex, object_counts
from siamdetr.data.repeat_factors import repeat_factors, repeat_positions
from siamdetr.errors import SettingsError
from siamdetr.evaluation.coco import warn_of_crowded_images
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.settings.detector import DetectorSettings, LossSettings
from siamdetr.settings.training import FinetuneSettings
from siamdetr.training.initial_weights import read_start
from siamdetr.training.loop import Length
from siamdetr.training.open_datasets import FinetuneData
from siamdetr.training.trainer import world_size

_log = logging.getLogger(__name__)


def resolved(settings: FinetuneSettings, index: DetectionIndex) -> FinetuneSettings:
    """Complete the settings from the data and the starting model.

    The number of classes is that of the data. With `init`, settings of the detector that were not given are those of
    that model; of a Hugging Face checkpoint also the size of the images.

    Raises:
        SettingsError: another number of classes was asked for.
        CheckpointError, HubError, OfficialCheckpointError: `init` cannot be read.
    """
    asked: dict[str, Any] = {name: getattr(settings.detector, name) for name in settings.detector.model_fields_set}
    if asked.get("num_classes", index.num_classes) != index.num_classes:
        raise SettingsError(
            f"detector.num_classes is {asked['num_classes']}, but the data has {index.num_classes} classes "
            f"({', '.join(index.class_names[:10])}); leave the setting out, it follows the data"
        )
    base, changes = settings.detector, dict[str, Any]()
    if settings.init is not None:
        begun = read_start(settings.init)
        base = begun.detector
        if begun.from_huggingface and "size" not in settings.images.model_fields_set:
            changes["images"] = settings.images.model_copy(update=_image_size(begun.metadata.preprocessing))
    base = base.model_copy(update={**asked, "num_classes": index.num_classes})
    if "classifier" not in asked:
        base = base.model_copy(update={"classifier": base.entry.classifier})
    changes["detector"] = DetectorSettings.model_validate(base.model_dump())
    if base.classifier == "softmax" and not settings.losses.model_fields_set:
        changes["losses"] = LossSettings(cost_class=1.0, weight_class=1.0)  # DETR's own
    elif base.entry.iou_aware and not settings.losses.model_fields_set:
        changes["losses"] = LossSettings(iou_aware=True, focal_alpha=0.75, weight_class=1.0)  # RT-DETR's own
    return settings.model_copy(update=changes)


def _image_size(spec: PreprocessingSpec) -> dict[str, Any]:
    """The size settings of a recipe; a letterbox, which training does not have, becomes its longest side."""
    if spec.mode == "letterbox":
        assert isinstance(spec.size, tuple)
        return {"size": max(spec.size), "max_size": max(spec.size)}
    return {"size": spec.size} | ({} if spec.max_size is None else {"max_size": spec.max_size})


def balanced(index: DetectionIndex, settings: FinetuneSettings) -> DetectionIndex:
    """The images of an epoch: those of rare classes several times, where `repeat_threshold` asks for it."""
    if not settings.repeat_threshold:
        return index
    repeated = index.subset(repeat_positions(repeat_factors(index, settings.repeat_threshold)))
    _log.info("Repeat factors: an epoch has %d images, of %d different ones.", len(repeated), len(index))
    return repeated


def strong_epochs(length: Length) -> int:
    """The number of epochs with strong augmentation: all but the last tenth, at least one."""
    epochs = math.ceil(length.total / length.per_epoch)
    return 1 if epochs == 1 else epochs - max(1, round(epochs / 10))


def first_batch(index: DetectionIndex, settings: FinetuneSettings) -> DetectionIndex:
    """The images of one batch over all processes, first those with boxes, for `overfit_batch`."""
    with_boxes = np.flatnonzero(index.box_counts() > 0)
    return index.subset(with_boxes[: settings.batch_size * world_size(settings)])


def warn_of_many_objects(data: FinetuneData, settings: FinetuneSettings) -> None:
    """Warn of images with more objects than the detector has queries, or than AP counts detections."""
    queries = settings.detector.num_queries
    objects = object_counts(data.train)
    crowded = int((objects > queries).sum())
    if crowded:
        _log.warning(
            "%d images have more objects than the detector has queries (the most: %d objects, %d queries), and a query finds one object: "
            "the rest cannot be learned. --set detector.num_queries=%d",
            crowded,
            int(objects.max()),
            queries,
            int(objects.max()),
        )
    if data.val is not None:
        warn_of_crowded_images(data.val, settings.val_max_detections)
