"""Open the data sets of a run, and log what they hold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from siamdetr.data.index import DetectionIndex, concatenate, require_labels
from siamdetr.data.readers.recognise import available_splits, open_dataset
from siamdetr.errors import DataError
from siamdetr.settings.training import DataSettings, FinetuneSettings

_log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
_JUDGED = 500  # labelled images at most, by which proposals are judged: their files are read for it


@dataclass(frozen=True)
class FinetuneData:
    """Images to train on and, if the data set has such a part, to validate on."""

    train: DetectionIndex
    val: DetectionIndex | None


@dataclass(frozen=True)
class PretrainData:
    """Images to pretrain on, without labels.

    And where there are labels, some of the images with theirs, to judge the proposals by.
    """

    images: DetectionIndex
    labelled: DetectionIndex | None


def open_unlabelled(data: DataSettings, progress: Progress | None = None) -> DetectionIndex:
    """The images of `open_pretraining`."""
    return open_pretraining(data, progress).images


def open_pretraining(data: DataSettings, progress: Progress | None = None) -> PretrainData:
    """The images of all paths, without their labels.

    If there are labels, the log points to `siamdetr finetune`.

    Of a data set that is divided only its train part is taken: what is scored later is not seen here either.
    """
    splits = [data.split or _first_there(path, data.format, ("train", "trainval")) for path in data.paths]
    parts = [_open(path, data, split, progress) for path, split in zip(data.paths, splits, strict=True)]
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
    split = data.split or _first_there(data.paths[0], data.format, ("train", "trainval"))
    parts = [_open(path, data, split, progress) for path in data.paths]
    train = require_labels(concatenate(parts), ", ".join(data.paths))
    train = require_labels(train.fraction(data.fraction, seed=settings.seed), f"{data.fraction:.3g} of the data")
    part = validation_split(data)
    if part is None:
        _log.warning("%s has no val part: nothing is evaluated, and the last weights are the result", data.paths[0])
        return FinetuneData(train, None)
    val_path, val_split = part
    val = require_labels(_open(val_path, data, val_split, progress), f"{val_path}, split '{val_split}'")
    if val.class_names != train.class_names:
        raise DataError(
            f"{val_path}: classes {list(val.class_names)} differ from the training data's {list(train.class_names)}; "
            "give both the same classes in the same order"
        )
    _log.info("Train: %d images, %d boxes. Val (%s): %d images.", len(train), train.num_boxes, val_split, len(val))
    return FinetuneData(train, _limited(val, settings))


def open_validation(settings: FinetuneSettings, progress: Progress | None = None) -> DetectionIndex | None:
    """The val part of `open_labelled` alone; None: there is none."""
    part = validation_split(settings.data)
    return None if part is None else _limited(_open(part[0], settings.data, part[1], progress), settings)


def validation_split(data: DataSettings) -> tuple[str, str | None] | None:
    """Path and split of the images that a finetuning run is validated on; None: there are none.

    Without `val_paths` and `val_split` that is the val part, else the test part, of a data set that has a train part as well.
    """
    path = (data.val_paths or data.paths)[0]
    divided = data.split is not None or _first_there(data.paths[0], data.format, ("train", "trainval")) is not None
    wanted = ("val", "test") if divided or data.val_paths else ()
    split = data.val_split or _first_there(path, data.format, wanted)
    return None if split is None and not data.val_paths else (path, split)


def _limited(val: DetectionIndex, settings: FinetuneSettings) -> DetectionIndex:
    return val if settings.val_limit is None else val.subset(range(min(settings.val_limit, len(val))))


def _open(path: str, data: DataSettings, split: str | None, progress: Progress | None) -> DetectionIndex:
    return open_dataset(path, format=data.format, split=split, strict=data.strict, progress=progress)


def _first_there(path: str, format: str, names: tuple[str, ...]) -> str | None:
    """The first of `names` that is a split of the data set; None: none is."""
    splits = available_splits(path, format=format)
    return next((name for name in names if name in splits), None)
