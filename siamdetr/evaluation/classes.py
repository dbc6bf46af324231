"""Match the classes of a model and of a data set by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import DataError

OBJECT = "object"  # the one class of a model that was pretrained and not yet finetuned


def is_class_agnostic(model: object) -> bool:
    """Whether a model detects objects without classes, as after pretraining.

    A flag in its metadata says so, not the name of its class.
    """
    return bool(getattr(model, "class_agnostic", False))


def as_one_class(index: DetectionIndex) -> DetectionIndex:
    """The same boxes with the one class "object", as the truth for a class-agnostic model."""
    return dataclasses.replace(index, labels=np.zeros_like(index.labels), class_names=(OBJECT,), category_ids=(1,))


def match_classes(model_names: Sequence[str], data_names: Sequence[str], source: str) -> NDArray[np.int64]:
    """The data set's label of every class of the model.

    Args:
        model_names: C names.
        data_names: the data set's names; each must be among the model's.
        source: the data set's name, for the error.
    Returns:
        [C] labels of the data set; -1 where the data set does not have the class.
    Raises:
        DataError: the model lacks a class of the data set; the text lists both.
    """
    missing = [name for name in data_names if name not in model_names]
    if missing:
        raise DataError(
            f"{source}: the model does not know {_list(missing)}. The data set has {len(data_names)} classes: "
            f"{_list(data_names)}; the model has {len(model_names)}: {_list(model_names)}. "
            "Take the data set it was trained on, or finetune on this one"
        )
    labels = {name: label for label, name in enumerate(data_names)}
    return np.array([labels.get(name, -1) for name in model_names], dtype=np.int64)


def _list(names: Sequence[str], shown: int = 30) -> str:
    text = ", ".join(names[:shown])
    return f"[{text}, … ({len(names)} in all)]" if len(names) > shown else f"[{text}]"
