"""What finetuning needs to know before it starts: the detector's settings, its first weights, the images."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import SettingsError
from siamdetr.model_file import read_metadata
from siamdetr.models.backbone.weights import load_backbone_weights
from siamdetr.models.detector import Detector
from siamdetr.settings.detector import DetectorSettings, LossSettings
from siamdetr.settings.training import FinetuneSettings, RunSettings
from siamdetr.training.initial_weights import Start, load_start
from siamdetr.training.trainer import world_size

_log = logging.getLogger(__name__)


def resolved(settings: FinetuneSettings, index: DetectionIndex) -> FinetuneSettings:
    """The settings with what the data and the starting model decide.

    The number of classes is the data's. With `init`, whatever was not said about the detector is as in that model.

    Raises:
        SettingsError: another number of classes was asked for.
        CheckpointError: `init` cannot be read.
    """
    asked: dict[str, Any] = {name: getattr(settings.detector, name) for name in settings.detector.model_fields_set}
    if asked.get("num_classes", index.num_classes) != index.num_classes:
        raise SettingsError(
            f"detector.num_classes is {asked['num_classes']}, but the data has {index.num_classes} classes "
            f"({', '.join(index.class_names[:10])}); leave the setting out, it follows the data"
        )
    base = read_metadata(settings.init)[0] if settings.init is not None else settings.detector
    base = base.model_copy(update={**asked, "num_classes": index.num_classes})
    if "classifier" not in asked:
        base = base.model_copy(update={"classifier": base.entry.classifier})
    changes: dict[str, Any] = {"detector": DetectorSettings.model_validate(base.model_dump())}
    if base.classifier == "softmax" and not settings.losses.model_fields_set:
        changes["losses"] = LossSettings(cost_class=1.0, weight_class=1.0)  # DETR's own
    return settings.model_copy(update=changes)


def start(detector: Detector, settings: FinetuneSettings, class_names: tuple[str, ...], *, resumed: bool) -> Start:
    """Fill a new detector: from `init`, else its backbone from `backbone_weights`; a resumed run has its own weights."""
    if resumed:
        return Start(loaded=0, fresh=(), lineage=read_metadata(settings.init)[1].lineage if settings.init else ())
    if settings.init is None:
        fill_backbone(detector, settings)
        return Start(loaded=0, fresh=(), lineage=())
    found = load_start(detector, class_names, settings.init)
    _log.info(
        "Starting from %s: %d tensors taken over; %s. Images are normalised as there: %s.",
        settings.init,
        found.loaded,
        f"starting afresh: {', '.join(found.fresh)}" if found.fresh else "nothing starts afresh",
        read_metadata(settings.init)[1].preprocessing.normalization,
    )
    return found


def fill_backbone(detector: Detector, settings: RunSettings) -> None:
    """Load the backbone's weights as the settings say."""
    if settings.backbone_weights != "none":
        load_backbone_weights(detector.backbone, settings.backbone_weights)
    else:
        _log.warning("The backbone starts from random weights.")


def first_batch(index: DetectionIndex, settings: FinetuneSettings) -> DetectionIndex:
    """The images of one batch over all processes, those with boxes first: for `overfit_batch`."""
    with_boxes = np.flatnonzero(index.box_counts() > 0)
    return index.subset(with_boxes[: settings.batch_size * world_size(settings)])
