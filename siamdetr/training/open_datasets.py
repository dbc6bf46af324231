"""Open the data sets of a run, and log their sizes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from siamdetr.data.concatenate import concatenate
from siamdetr.data.index import DetectionIndex, require_labels
from siamdetr.data.readers.recognise import Source, find_source
from siamdetr.errors import DataError
from siamdetr.settings.training import DataSettings, FinetuneSettings

_log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
_TRAIN_PARTS = ("train", "trainval")
_JUDGED = 500  # labelled images at most, by which proposals are judged: their files are read for it


@dataclass(frozen=True)
class FinetuneData:
    """Images to train on and, if the data set has such a part, to validate on."""

    train: DetectionIndex
    val: DetectionIndex | None


@dataclass(frozen=True)
class PretrainData:
    """Images to pretrain on, without labels.

    If there are labels, also some labelled images, on which proposals are scored.
    """

    images: DetectionIndex
    labelled: DetectionIndex | None


def open_unlabelled(data: DataSettings, progress: Progress | None = None) -> DetectionIndex:
    """The images of `open_pretraining`."""
    return open_pretraining(data, progress).images


def open_pretraining(data: DataSettings, progress: Progress | None = None) -> PretrainData:
    """The images of all paths, without their labels.

    If there are labels, the log points to `siamdetr finetune`.

    Of a data set with splits only the train part is used, so that no scored image is pretrained on.
    """
    sources = [find_source(path, data.format) for path in data.paths]
    parts = [
        source.open(data.split or source.first_split(_TRAIN_PARTS), strict=data.strict, progress=progress)
        for source in sources
    ]
    labelled = sum(part.num_boxes for part in parts)
    if labelled:
        _log.info(
            "The data has labels (%d boxes); pretraining does not look at them (the report tells the proposals' recall by them). "
            "To train on them: siamdetr finetune --data %s",
            labelled,
            data.paths[0],
        )
    index = concatenate([part.without_labels() for part in parts])
    return PretrainData(index.fraction(data.fraction, seed=0), _some_labelled(parts))


def _some_labelled(parts: Sequence[DetectionIndex]) -> DetectionIndex | None:
    """Images of the first part that has boxes (crowds do not count), evenly spread; None: none has."""
    for part in parts:
        with_boxes = np.unique(np.repeat(np.arange(len(part)), part.box_counts())[~part.crowd])
        if len(with_boxes):
            return part.subset(with_boxes[:: -(-len(with_boxes) // _JUDGED)])
    return None


def open_labelled(settings: FinetuneSettings, progress: Progress | None = None) -> FinetuneData:
    """The train part and the val part of the labelled data.

    Raises:
        DataError: nothing to learn from, or the two parts do not have the same classes.
    """
    data = settings.data
    find = _finder(data)
    train = _training(settings, find, progress)
    part = _validation(data, find)
    if part is None:
        _log.warning("%s has no val part: nothing is evaluated, and the last weights are the result", data.paths[0])
        return FinetuneData(train, None)
    source, val_split = part
    val_path = source.path
    val = require_labels(
        source.open(val_split, strict=data.strict, progress=progress), f"{val_path}, split '{val_split}'"
    )
    if val.class_names != train.class_names:
        raise DataError(
            f"{val_path}: classes {list(val.class_names)} differ from the training data's {list(train.class_names)}; "
            "give both the same classes in the same order"
        )
    _log.info("Train: %d images, %d boxes. Val (%s): %d images.", len(train), train.num_boxes, val_split, len(val))
    return FinetuneData(train, _limited(val, settings))


def open_training(settings: FinetuneSettings, progress: Progress | None = None) -> DetectionIndex:
    """The train part of `open_labelled` alone."""
    return _training(settings, _finder(settings.data), progress)


def open_validation(settings: FinetuneSettings, progress: Progress | None = None) -> DetectionIndex | None:
    """The val part of `open_labelled` alone; None: there is none."""
    part = _validation(settings.data, _finder(settings.data))
    if part is None:
        return None
    return _limited(part[0].open(part[1], strict=settings.data.strict, progress=progress), settings)


def _training(settings: FinetuneSettings, find: Callable[[str], Source], progress: Progress | None) -> DetectionIndex:
    data = settings.data
    split = data.split or find(data.paths[0]).first_split(_TRAIN_PARTS)
    parts = [find(path).open(split, strict=data.strict, progress=progress) for path in data.paths]
    train = require_labels(concatenate(parts), ", ".join(data.paths))
    return require_labels(train.fraction(data.fraction, seed=settings.seed), f"{data.fraction:.3g} of the data")


def _validation(data: DataSettings, find: Callable[[str], Source]) -> tuple[Source, str | None] | None:
    """Data set and split of the images that a finetuning run is validated on; None: there are none.

    Without `val_paths` and `val_split` that is the val part, else the test part, of a data set that has a train part as
    well.
    """
    source = find((data.val_paths or data.paths)[0])
    divided = data.split is not None or find(data.paths[0]).first_split(_TRAIN_PARTS) is not None
    wanted = ("val", "test") if divided or data.val_paths else ()
    split = data.val_split or source.first_split(wanted)
    return None if split is None and not data.val_paths else (source, split)


def _finder(data: DataSettings) -> Callable[[str], Source]:
    """Recognise each path once."""
    return functools.cache(lambda path: find_source(path, data.format))


def _limited(val: DetectionIndex, settings: FinetuneSettings) -> DetectionIndex:
    return val if settings.val_limit is None else val.subset(range(min(settings.val_limit, len(val))))
