"""preprocessor_config.json of Hugging Face and our `PreprocessingSpec`, in both directions."""

from __future__ import annotations

import logging
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from siamdetr.errors import OfficialCheckpointError
from siamdetr.images.preprocessing import IMAGENET, PLAIN, PreprocessingSpec

_log = logging.getLogger(__name__)

_BILINEAR = 2  # Pillow's number


class ImageProcessor(BaseModel):
    """The fields of preprocessor_config.json that are read.

    The defaults are those of transformers' `DetrImageProcessor`.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    image_processor_type: str = "DetrImageProcessor"
    do_resize: bool = True
    size: dict[str, int | None] | int = {"shortest_edge": 800, "longest_edge": 1333}
    max_size: int | None = None  # beside a `size` of one number, in old files
    resample: int = _BILINEAR
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = IMAGENET.mean
    image_std: tuple[float, float, float] = IMAGENET.std


def read_preprocessing(values: dict[str, Any], where: str) -> PreprocessingSpec:
    """Our recipe from the values of preprocessor_config.json.

    Raises:
        OfficialCheckpointError: a value of another type, a size of an unknown form, or pixels that are not scaled.
    """
    try:
        processor = ImageProcessor.model_validate(values)
        if not processor.do_rescale and processor.do_normalize:
            raise OfficialCheckpointError(
                f"{where}: do_rescale is false, expected true: pixels of 0..255 are not taken"
            )
        if not processor.do_resize or processor.resample != _BILINEAR:
            asked = "do_resize false" if not processor.do_resize else f"resample {processor.resample}"
            _log.warning("%s: %s; here images are resized with the bilinear filter.", where, asked)
        return PreprocessingSpec.model_validate(_size(processor, where) | _normalization(processor))
    except ValidationError as error:
        raise OfficialCheckpointError(f"{where}: {' '.join(str(error).split())[:400]}") from error


def write_preprocessing(spec: PreprocessingSpec, processor_type: str) -> dict[str, Any]:
    """The values of preprocessor_config.json for our recipe."""
    if isinstance(spec.size, int):
        size: dict[str, int | None] = {"shortest_edge": spec.size, "longest_edge": spec.max_size}
    elif spec.mode == "letterbox":
        size = {"max_height": spec.size[0], "max_width": spec.size[1]}
    else:
        size = {"height": spec.size[0], "width": spec.size[1]}
    return {
        "image_processor_type": processor_type,
        "format": "coco_detection",
        "do_resize": True,
        "size": {name: value for name, value in size.items() if value is not None},
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": spec.normalization != PLAIN,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "do_pad": spec.mode != "fixed",
    }


def _size(processor: ImageProcessor, where: str) -> dict[str, Any]:
    size = processor.size
    if isinstance(size, int):
        return {"mode": "shortest-edge", "size": size, "max_size": processor.max_size}
    sides = {name: value for name, value in size.items() if value is not None}
    if "shortest_edge" in sides:
        return {"mode": "shortest-edge", "size": sides["shortest_edge"], "max_size": sides.get("longest_edge")}
    for mode, names in (("fixed", ("height", "width")), ("letterbox", ("max_height", "max_width"))):
        if set(names) <= set(sides):
            return {"mode": mode, "size": tuple(sides[name] for name in names), "max_size": None}
    raise OfficialCheckpointError(
        f"{where}: size has the keys {', '.join(sides) or 'none'}; expected shortest_edge (and longest_edge), height and "
        "width, or max_height and max_width"
    )


def _normalization(processor: ImageProcessor) -> dict[str, Any]:
    """Mean and standard deviation of values in 0..1, whatever factor the pixels are scaled by."""
    if not processor.do_normalize:
        mean, std = PLAIN
    else:
        mean, std = processor.image_mean, processor.image_std
    factor = processor.rescale_factor * 255 if processor.do_rescale else 255.0
    if abs(factor - 1) > 1e-6:
        mean = (mean[0] / factor, mean[1] / factor, mean[2] / factor)
        std = (std[0] / factor, std[1] / factor, std[2] / factor)
    return {"mean": mean, "std": std}
