"""What an exported model takes and gives, in the words of the Open Inference Protocol, and what its clients have to know.

Shared by our server and the configuration for Triton. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from siamdetr.preprocessing import PreprocessingSpec

PARAMETER = "siamdetr"  # of a model's configuration: the JSON of `client_card`


@dataclass(frozen=True)
class Tensor:
    """An input or output: protocol datatype and dimensions after the batch; -1 is free."""

    name: str
    datatype: str
    dims: tuple[int, ...]


INPUTS = (Tensor("images", "UINT8", (3, -1, -1)), Tensor("original_sizes", "INT64", (2,)))
OUTPUTS = (Tensor("boxes", "FP32", (-1, 4)), Tensor("scores", "FP32", (-1,)), Tensor("labels", "INT64", (-1,)))


def client_card(class_names: Sequence[str], preprocessing: PreprocessingSpec) -> str:
    """What a client has to know, as JSON."""
    return json.dumps(
        {"class_names": list(class_names), "preprocessing": preprocessing.model_dump(mode="json")}, ensure_ascii=False
    )
