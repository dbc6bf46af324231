"""A detector in an ONNX file of another program, run by a declaration of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siamdetr.errors import ExportError
from siamdetr.export.declaration import Declaration
from siamdetr.export.sessions import Array, OnnxRuntimeSession
from siamdetr.images.preprocessing import Prepared, PreprocessingSpec
from siamdetr.inference.predictor import DEFAULT_THRESHOLD, ScoredBoxes

Floats = NDArray[np.float32]
_LEAST_SCORE = 0.001  # of a box that goes into the non-maximum suppression
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}


class ForeignDetector:
    """A detector in any ONNX file, as a `Predictor`.

    Args:
        path: the file.
        declaration: of its inputs and outputs.
        class_names: names of its classes if the declaration has none: those of the data that it is compared on.
        category_ids: the data's ids, used as score columns if the file has more columns than names.
        device: as of `OnnxRuntimeSession`.
    Raises:
        ExportError: the file cannot be opened, or contradicts the declaration.
    """

    threshold = DEFAULT_THRESHOLD
    threshold_from = ""
    class_agnostic = False

    def __init__(
        self,
        path: Path,
        declaration: Declaration,
        *,
        class_names: Sequence[str] = (),
        category_ids: Sequence[int] = (),
        device: str = "cpu",
    ) -> None:
        self.path, self.declaration = path, declaration
        self._session = OnnxRuntimeSession(path, device=device, threads=None)
        self._image = next((name for name, (_, shape) in self._session.inputs.items() if len(shape) == 4), None)
        if self._image is None:
            raise ExportError(f"{path}: no input of images [N, 3, H, W] among {', '.join(self._session.inputs)}")
        self.preprocessing = self._spec()
        self._columns = self._named_columns(class_names, category_ids)
        self.class_names = tuple(self._columns.values())

    @property
    def runtime(self) -> str:
        """Name and version of the runtime."""
        return self._session.runtime

    def predict_batch(self, batch: Prepared) -> ScoredBoxes:
        """All scored boxes of a batch of prepared images; a graph of a fixed batch computes it in parts."""
        fixed = self._session.inputs[str(self._image)][1][0]
        step = fixed if isinstance(fixed, int) else len(batch)
        if len(batch) % step:
            raise ExportError(
                f"{self.path}: takes {step} images at a time, got {len(batch)}; export it with a batch of 1"
            )
        parts = [self._predict(_rows(batch, start, start + step)) for start in range(0, len(batch), step)]
        return ScoredBoxes(
            scores=np.concatenate([part.scores for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            boxes=np.concatenate([part.boxes for part in parts]),
        )

    def _predict(self, batch: Prepared) -> ScoredBoxes:
        names = tuple(self._session.outputs)
        outputs = dict(zip(names, self._session.run(names, self._feed(batch)), strict=True))
        boxes, scores, labels = self._read(outputs)
        boxes = self._to_pixels(boxes, batch)
        return self._best(boxes, scores, labels)

    def _spec(self) -> PreprocessingSpec:
        height, width = self._session.inputs[str(self._image)][1][2:]
        size = self.declaration.size or (height, width)
        if not all(isinstance(side, int) for side in size):
            raise ExportError(f"{self.path}: its input has a free size, [{height}, {width}]; declare `size: [H, W]`")
        return PreprocessingSpec(
            mode=self.declaration.resize, size=size, mean=self.declaration.mean, std=self.declaration.std
        )

    def _named_columns(self, names: Sequence[str], ids: Sequence[int]) -> dict[int, str]:
        """Column of the scores, or label → class name: as declared, else by the number of columns."""
        own = self.declaration.classes
        if own is not None:
            return dict(sorted(own.items())) if isinstance(own, dict) else dict(enumerate(own))
        count = self._num_columns()
        if count is None or count == len(names):
            return dict(enumerate(names))
        if ids and count > max(ids):  # a column for every id up to the largest, as COCO's 91 for 80 classes
            return dict(zip(ids, names, strict=True))
        raise ExportError(
            f"{self.path}: {count} columns of scores, {len(names)} classes in the data; declare `classes`"
        )

    def _num_columns(self) -> int | None:
        """The number of score columns that are classes; None: the graph does not say."""
        shapes = [shape for shape in self._session.outputs.values() if len(shape) == 3]
        if self.declaration.form == "joined":
            sizes = [shape[1] - 4 for shape in shapes if isinstance(shape[1], int)]
        else:
            sizes = [shape[2] for shape in shapes if isinstance(shape[2], int) and shape[2] != 4]
        if self.declaration.form == "detections" or not sizes:
            return None
        return int(sizes[0]) - (self.declaration.no_object is not None)

    def _feed(self, batch: Prepared) -> dict[str, Array]:
        """The graph's inputs by name: the images, and their sizes or a padding mask where it asks for them."""
        pixels = _padded(batch, self.declaration)
        feed: dict[str, Array] = {}
        for name, (kind, shape) in self._session.inputs.items():
            if name == self._image:
                values = pixels if kind == "tensor(uint8)" else _normalized(pixels, self.declaration)
                feed[name] = values.astype(_TYPES.get(kind, np.float32))
            elif len(shape) == 2:  # `orig_target_sizes`: width, height
                feed[name] = batch.original_sizes[:, ::-1].copy()
            else:  # `pixel_mask`
                feed[name] = np.ones((len(batch), *pixels.shape[2:]), dtype=np.int64)
        return feed

    def _read(self, outputs: dict[str, Array]) -> tuple[Floats, Floats, NDArray[np.int64] | None]:
        """Boxes [N, M, 4], not converted, and scores [N, M, C]; or scores [N, M] with labels [N, M]."""
        form = self.declaration.form
        if form == "joined":
            joined = self._one(outputs, lambda shape: len(shape) == 3).transpose(0, 2, 1)
            return joined[..., :4], self._activated(joined[..., 4:]), None
        boxes = self._one(outputs, lambda shape: len(shape) == 3 and shape[2] == 4)
        if form == "logits":
            return boxes, self._activated(self._one(outputs, lambda shape: len(shape) == 3 and shape[2] != 4)), None
        flat = {name: value for name, value in outputs.items() if value.ndim == 2}
        whole = [value for value in flat.values() if np.issubdtype(value.dtype, np.integer)]
        scores = [value for value in flat.values() if np.issubdtype(value.dtype, np.floating)]
        if len(whole) != 1 or len(scores) != 1:
            raise ExportError(
                f"{self.path}: {self._shapes(outputs)}: expected one output of labels and one of scores; declare another `form`"
            )
        return boxes, scores[0].astype(np.float32), whole[0].astype(np.int64)

    def _one(self, outputs: dict[str, Array], fits: Any) -> Floats:
        found = [value for value in outputs.values() if fits(value.shape)]
        if not found:
            raise ExportError(
                f"{self.path}: {self._shapes(outputs)}: no output fits the form '{self.declaration.form}'; declare another `form`"
            )
        return found[0].astype(np.float32)

    def _shapes(self, outputs: dict[str, Array]) -> str:
        return ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())

    def _activated(self, values: Floats) -> Floats:
        """Scores in [0, 1] of the columns that are classes."""
        if self.declaration.scores == "sigmoid":
            values = 1 / (1 + np.exp(-values.clip(-80, 80)))
        elif self.declaration.scores == "softmax":
            values = np.exp(values - values.max(-1, keepdims=True))
            values /= values.sum(-1, keepdims=True)
        if self.declaration.no_object is not None:
            values = values[..., 1:] if self.declaration.no_object == "first" else values[..., :-1]
        columns = [column for column in self._columns if column < values.shape[-1]]
        if len(columns) < len(self._columns):
            raise ExportError(
                f"{self.path}: {values.shape[-1]} columns of scores, {len(self._columns)} classes; declare `classes`"
            )
        return np.asarray(values[..., columns], dtype=np.float32)

    def _to_pixels(self, boxes: Floats, batch: Prepared) -> Floats:
        """(x0, y0, x1, y1) in pixels of the original images."""
        if self.declaration.boxes == "cxcywh":
            centre, half = boxes[..., :2], boxes[..., 2:] / 2
            boxes = np.concatenate([centre - half, centre + half], axis=-1)
        if self.declaration.units == "original":
            return boxes
        height, width = batch.images.shape[2:]
        if self.declaration.units == "fraction":
            boxes = boxes * np.array([width, height, width, height], dtype=np.float32)
        offset = _offsets(batch, self.declaration)[:, None, ::-1]  # x, y
        scale = (batch.original_sizes / batch.sizes)[:, None, ::-1]
        corners = boxes.reshape(*boxes.shape[:-1], 2, 2) - offset[:, :, None]
        return np.asarray((corners * scale[:, :, None]).reshape(boxes.shape), dtype=np.float32)

    def _best(self, boxes: Floats, scores: Floats, labels: NDArray[np.int64] | None) -> ScoredBoxes:
        """The best K boxes of each image; missing ones have a score of 0."""
        chosen = [
            self._of_image(*row)
            for row in zip(boxes, scores, labels if labels is not None else [None] * len(boxes), strict=True)
        ]
        most = max((len(one[1]) for one in chosen), default=0)
        result = ScoredBoxes(
            scores=np.zeros((len(boxes), most), dtype=np.float32),
            labels=np.zeros((len(boxes), most), dtype=np.int64),
            boxes=np.zeros((len(boxes), most, 4), dtype=np.float32),
        )
        for row, (own_boxes, own_scores, own_labels) in enumerate(chosen):
            count = len(own_scores)
            result.boxes[row, :count], result.scores[row, :count], result.labels[row, :count] = (
                own_boxes,
                own_scores,
                own_labels,
            )
        return result

    def _of_image(
        self, boxes: Floats, scores: Floats, labels: NDArray[np.int64] | None
    ) -> tuple[Floats, Floats, NDArray[np.int64]]:
        if labels is not None:  # columns → positions; the others are dropped
            positions = {column: position for position, column in enumerate(self._columns)}
            kept = np.array([int(label) in positions for label in labels], dtype=bool)
            labels = np.array([positions[int(label)] for label in labels[kept]], dtype=np.int64)
            boxes, scores = boxes[kept], scores[kept]
        elif self.declaration.scores == "sigmoid" and self.declaration.nms is None:  # a query may be several objects
            flat = np.argsort(-scores, axis=None, kind="stable")[: self.declaration.top_k]
            rows, labels = np.unravel_index(flat, scores.shape)
            return boxes[rows], scores[rows, labels], labels.astype(np.int64)
        else:
            labels, scores = scores.argmax(-1).astype(np.int64), scores.max(-1)
        if self.declaration.nms is not None:
            kept = np.flatnonzero(scores >= _LEAST_SCORE)
            kept = kept[_suppressed(boxes[kept], scores[kept], labels[kept], self.declaration.nms)]
            boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        order = np.argsort(-scores, kind="stable")[: self.declaration.top_k]
        return boxes[order], scores[order], labels[order]


def _rows(batch: Prepared, start: int, stop: int) -> Prepared:
    padding = None if batch.padding is None else batch.padding[start:stop]
    return Prepared(batch.images[start:stop], padding, batch.original_sizes[start:stop], batch.sizes[start:stop])


def _offsets(batch: Prepared, declaration: Declaration) -> NDArray[np.int64]:
    """[N, 2] (y, x) of each image's upper left corner in the input."""
    if declaration.padding == "right-below":
        return np.zeros_like(batch.sizes)
    return (np.array(batch.images.shape[2:]) - batch.sizes) // 2


def _padded(batch: Prepared, declaration: Declaration) -> NDArray[np.uint8]:
    """The images in the place that the declaration names, on its grey."""
    if declaration.resize == "fixed":
        return batch.images
    canvas = np.full_like(batch.images, declaration.pad_value)
    for row, ((height, width), (top, left)) in enumerate(zip(batch.sizes, _offsets(batch, declaration), strict=True)):
        canvas[row, :, top : top + height, left : left + width] = batch.images[row, :, :height, :width]
    return canvas


def _normalized(pixels: NDArray[np.uint8], declaration: Declaration) -> Floats:
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (declaration.mean, declaration.std))
    values: Floats = ((pixels.astype(np.float32) / 255 - mean) / std).astype(np.float32)
    return values[:, ::-1].copy() if declaration.channels == "bgr" else values


def _suppressed(boxes: Floats, scores: Floats, labels: NDArray[np.int64], iou: float) -> NDArray[np.int64]:
    """Rows that remain after non-maximum suppression within each class."""
    import torch
    from torchvision.ops import batched_nms

    kept: NDArray[np.int64] = batched_nms(*(torch.from_numpy(value) for value in (boxes, scores, labels)), iou).numpy()
    return kept
