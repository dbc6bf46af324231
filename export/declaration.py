"""Inputs and outputs of a detector in a file of another program.

`KNOWN` holds the declarations of common exporters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError

from siamdetr.errors import ExportError
from siamdetr.images.preprocessing import IMAGENET, PLAIN
from siamdetr.settings.base import Settings


class Declaration(Settings):
    """Inputs and outputs of a foreign detector."""

    size: tuple[int, int] | None = Field(None, description="(height, width) of the input; null: as the graph says")
    resize: Literal["fixed", "letterbox"] = Field("fixed", description="letterbox keeps the shape and pads")
    padding: Literal["right-below", "centre"] = Field("right-below", description="letterbox: where the image lies")
    pad_value: int = Field(0, ge=0, le=255, description="letterbox: grey level of the padding")
    mean: tuple[float, float, float] = PLAIN.mean
    std: tuple[float, float, float] = PLAIN.std
    channels: Literal["rgb", "bgr"] = "rgb"
    form: Literal["logits", "joined", "detections"] = Field(
        "logits",
        description="logits: boxes [N, Q, 4] and scores [N, Q, C]; joined: one output [N, 4 + C, M]; detections: boxes, scores and labels",
    )
    boxes: Literal["cxcywh", "xyxy"] = "cxcywh"
    units: Literal["fraction", "input", "original"] = Field(
        "fraction", description="of what: pixels, or share of the input"
    )
    scores: Literal["sigmoid", "softmax", "as they are"] = "sigmoid"
    no_object: Literal["first", "last"] | None = Field(None, description="the column of scores that is no class")
    nms: float | None = Field(None, gt=0, le=1, description="IoU of the non-maximum suppression; null: none")
    top_k: int = Field(300, ge=1, description="boxes of an image")
    classes: tuple[str, ...] | dict[int, str] | None = Field(
        None, description="names in the order of the columns, or column: name; null: those of --data"
    )


KNOWN: dict[str, Declaration] = {
    "rf-detr": Declaration(mean=IMAGENET.mean, std=IMAGENET.std),
    "rt-detr": Declaration(form="detections", boxes="xyxy", units="original", scores="as they are"),
    "transformers-detr": Declaration(mean=IMAGENET.mean, std=IMAGENET.std, scores="softmax", no_object="last"),
    "transformers-rt-detr": Declaration(),
    "ultralytics": Declaration(
        resize="letterbox", padding="centre", pad_value=114, form="joined", units="input", scores="as they are", nms=0.7
    ),
}  # fmt: skip


def read_declaration(text: str) -> Declaration:
    """A declaration by the name of an exporter, or from a YAML file.

    Raises:
        ExportError: it is neither, or the file is invalid.
    """
    if text in KNOWN:
        return KNOWN[text]
    path = Path(text)
    if not path.is_file():
        raise ExportError(f"declaration '{text}': no such file, and none of {', '.join(KNOWN)}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        base = KNOWN[values.pop("like")].model_dump() if "like" in values else {}
        return Declaration.model_validate({**base, **values})
    except (yaml.YAMLError, ValidationError, TypeError, AttributeError, KeyError) as error:
        raise ExportError(
            f"{path}: not a declaration ({' '.join(str(error).split())[:400]}); docs/gate.md lists the keys"
        ) from error
