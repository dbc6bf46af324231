"""Inputs and outputs of an exported model for the Open Inference Protocol, and facts for clients.

Our server and the configuration for Triton share them. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from siamdetr.images.preprocessing import PreprocessingSpec

PARAMETER = "siamdetr"  # of a model's configuration: the JSON of `client_card`


@dataclass(frozen=True)
class Tensor:
    """An input or output: protocol datatype and dimensions after the batch; -1 is free."""

    name: str
    datatype: str
    dims: tuple[int, ...]


OUTPUTS = (Tensor("boxes", "FP32", (-1, 4)), Tensor("scores", "FP32", (-1,)), Tensor("labels", "INT64", (-1,)))


def input_tensors(preprocessing: PreprocessingSpec) -> tuple[Tensor, ...]:
    """The inputs of a model with this preprocessing.

    They are the preprocessed `images`, and `original_sizes` (height, width) before preprocessing; with a letterbox also
    `valid_sizes`, the (height, width) of each image without its padding, which is right and below.
    """
    original_sizes = Tensor("original_sizes", "INT64", (2,))
    if preprocessing.mode == "letterbox" and isinstance(preprocessing.size, tuple):
        return Tensor("images", "UINT8", (3, *preprocessing.size)), original_sizes, Tensor("valid_sizes", "INT64", (2,))
    return Tensor("images", "UINT8", (3, -1, -1)), original_sizes


def client_card(class_names: Sequence[str], preprocessing: PreprocessingSpec, threshold: float) -> str:
    """The facts that a client needs, as JSON: classes, preprocessing and the default threshold."""
    card = {
        "class_names": list(class_names),
        "preprocessing": preprocessing.model_dump(mode="json"),
        "threshold": threshold,
    }
    return json.dumps(card, ensure_ascii=False)
