"""The data of the demo's page, as plain values.

It has the detections of every model on a picture, and the attention of a model.

Threshold, number of boxes, layer and head are chosen in the browser and not known here. Models run once per picture;
results of the last few pictures are kept, so that a click needs no further pass.
"""

from __future__ import annotations

import base64
import io
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from siamdetr.api import Model, SiamDETR
from siamdetr.drawing.boxes import PALETTE
from siamdetr.inference.attention_maps import AttentionMaps, Inspection
from siamdetr.inference.inspect_any import inspect_image
from siamdetr.inference.predictor import check_finite

MOST_BOXES = 100
_KEPT_PICTURES = 4
_THUMBNAIL = 96  # pixels, the shorter side
_SHOWN = 1600  # pixels, the longest side in the page


@dataclass(frozen=True)
class NamedModel:
    """A model under the name that the page shows."""

    name: str
    model: SiamDETR | Model


@dataclass(frozen=True)
class _Seen:
    """A picture, with the inspection of every model."""

    inspections: tuple[Inspection, ...]
    orders: tuple[NDArray[np.int64], ...]  # of each model the numbers of its shown boxes, best first


class Answers:
    """Runs the models, and keeps their results for the last pictures.

    Args:
        models: at least one.
    """

    def __init__(self, models: Sequence[NamedModel]) -> None:
        self.models = tuple(models)
        self._locks = tuple(threading.Lock() for _ in models)
        self._kept: OrderedDict[int, _Seen] = OrderedDict()
        self._keeping = threading.Lock()
        self._number = 0

    def detect(self, image: Image.Image, name: str) -> dict[str, Any]:
        """Run every model on an upright RGB image.

        Returns:
            `picture`: {id, url, name, width, height}; `models`: of each {name, note, classes, colours, threshold,
            boxes, decoder, encoder}, boxes as [x0, y0, x1, y1, score, label], in pixels cut at the image's edges, best
            first; threshold is None if none was chosen.
        Raises:
            NonFiniteOutputError: a model's output is NaN or infinite.
        """
        found = [self._ask(index, image) for index in range(len(self.models))]
        for one, _ in found:
            check_finite(one.scored, 0)
        seen = _Seen(tuple(one for one, _ in found), tuple(_best(one) for one, _ in found))
        with self._keeping:
            self._number += 1
            number = self._number
            self._kept[number] = seen
            while len(self._kept) > _KEPT_PICTURES:
                self._kept.popitem(last=False)
        models = [
            _describe(named, one, order, seconds)
            for named, (one, seconds), order in zip(self.models, found, seen.orders, strict=True)
        ]
        picture = {
            "id": number,
            "url": data_url(image, longest=_SHOWN),
            "name": name,
            "width": image.width,
            "height": image.height,
        }
        return {"picture": picture, "models": models}

    def look(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The attention of a model for a box or a point.

        Args:
            question: {picture, model, box}, box in the order of `detect`; or {picture, model, x, y}, fractions of the
                image.
        Returns:
            `shape` [L, M, h, w]; `maps` of it in base64, 255 being the peak of its layer and head in `peaks`; `points`
            in base64: float32 [L, M, N, 3] (x, y, weight), or None; `references` [L, 2 or 4] or None.
        Raises:
            ValueError: the question is invalid, or the picture is no longer kept.
        """
        picture, model = _whole(question, "picture"), _whole(question, "model")
        with self._keeping:
            seen = self._kept.get(picture)
        if seen is None:
            raise ValueError("This picture is no longer kept; open it again.")
        if not 0 <= model < len(self.models):
            raise ValueError(f"model: got {model}, expected 0 to {len(self.models) - 1}")
        with self._locks[model]:
            if "box" in question:
                box, order = _whole(question, "box"), seen.orders[model]
                if not 0 <= box < len(order):
                    raise ValueError(f"box: got {box}, expected 0 to {len(order) - 1}")
                return pack(seen.inspections[model].decoder_attention(int(order[box])))
            return pack(seen.inspections[model].encoder_attention(_number(question, "x"), _number(question, "y")))

    def _ask(self, index: int, image: Image.Image) -> tuple[Inspection, float]:
        """Inspect with one pass at a time, because hooks in the model record the attentions."""
        with self._locks[index]:
            started = time.perf_counter()
            return inspect_image(self.models[index].model, image), time.perf_counter() - started


def pack(look: AttentionMaps) -> dict[str, Any]:
    """Attention maps as plain values; see `Answers.look`."""
    peaks = look.maps.max((-2, -1), keepdims=True)
    levels = np.divide(look.maps * 255, peaks, out=np.zeros_like(look.maps), where=peaks > 0)
    points = None
    if look.points is not None and look.weights is not None:
        joined = np.concatenate([look.points, look.weights[..., None]], axis=-1)
        points = base64.b64encode(np.ascontiguousarray(joined, dtype="<f4").tobytes()).decode()
    return {
        "shape": list(look.maps.shape),
        "maps": base64.b64encode(levels.round().clip(0, 255).astype(np.uint8).tobytes()).decode(),
        "peaks": [float(peak) for peak in peaks.flat],
        "points": points,
        "references": None if look.references is None else look.references.tolist(),
    }


def data_url(image: Image.Image, *, longest: int) -> str:
    """The image as a JPEG in a data URL, at most `longest` pixels a side."""
    shown = image.copy()
    shown.thumbnail((longest, longest))
    content = io.BytesIO()
    shown.save(content, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def thumbnail(image: Image.Image) -> str:
    """A small version of the image, as a data URL."""
    scale = 2 * _THUMBNAIL / min(image.size)
    return data_url(image, longest=max(1, round(max(image.size) * min(scale, 1))))


def _best(seen: Inspection) -> NDArray[np.int64]:
    order: NDArray[np.int64] = np.argsort(-seen.scored.scores[0], kind="stable").astype(np.int64)
    return order[:MOST_BOXES]


def _describe(named: NamedModel, seen: Inspection, order: NDArray[np.int64], seconds: float) -> dict[str, Any]:
    scored, (height, width) = seen.scored, seen.size
    corners = scored.boxes[0][order].clip(0, np.array([width, height, width, height], dtype=np.float32))
    names = named.model.class_names
    info = named.model.info
    what = str(info.get("variant") or info.get("kind", ""))
    return {
        "name": named.name,
        "note": f"{what} · {seconds * 1000:.0f} ms",
        "classes": list(names),
        "colours": [PALETTE.by_idx(label).as_hex() for label in range(len(names))],
        "threshold": named.model.threshold if named.model.threshold_from else None,
        "boxes": [
            [*(round(float(value), 1) for value in box), round(float(score), 4), int(label)]
            for box, score, label in zip(corners, scored.scores[0][order], scored.labels[0][order], strict=True)
        ],
        "decoder": seen.has_decoder_attention,
        "encoder": seen.has_encoder_attention,
    }


def _whole(question: Mapping[str, Any], key: str) -> int:
    value = question.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key}: got {value!r}, expected a whole number")
    return value


def _number(question: Mapping[str, Any], key: str) -> float:
    value = question.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{key}: got {value!r}, expected a number")
    return float(value)
