"""Build a `DetectionIndex` from rows, and apply the rules of validity to all boxes at once.

Rows go straight into typed, growing buffers (`array.array`, 1 to 8 bytes a number), never into lists of objects.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siamdetr.data.index import DetectionIndex
from siamdetr.data.problems import ProblemLog
from siamdetr.data.readers.fields import as_integer

# A box may reach this far beyond the image without a problem line, because annotation tools round outwards.
ROUNDING_PIXELS = 1.0
TINY_PIXELS = 1.0
ROWS_AT_A_TIME = 1_000_000  # bounds the temporary arrays of the checks

Locate = Callable[[int, int], tuple[str, str]]  # (image position, reference) -> (file, where inside it)


class IndexBuilder:
    """Collects images, then their boxes, in any order.

    Args:
        root: folder that the paths are relative to.
        log: of bad boxes.
    """

    def __init__(self, root: Path, log: ProblemLog) -> None:
        self.root = root
        self.log = log
        self._path_blob = bytearray()
        self._path_ends = array("q")
        self._image_ids = array("q")
        self._sizes = array("i")
        self._coordinates = array("f")
        self._areas = array("f")
        self._labels = array("i")
        self._images = array("i")
        self._references = array("q")
        self._flags = array("b")  # bit 0 crowd, bit 1 difficult
        self._own_ids: dict[int, int | str] = {}  # position -> an id that 64 bits do not hold
        self._numbered = False

    def __len__(self) -> int:
        return len(self._image_ids)

    def add_image(self, path: str, *, image_id: int | str | None = None, height: int = 0, width: int = 0) -> int:
        """Add an image; returns its position.

        Args:
            path: relative to the root, with forward slashes.
            image_id: the data set's own id; None numbers from 1.
            height: pixels, after EXIF rotation; 0 = not known.
            width: pixels, after EXIF rotation; 0 = not known.
        """
        position = len(self._image_ids)
        self._path_blob += path.encode("utf-8", "surrogateescape")
        self._path_ends.append(len(self._path_blob))
        number = as_integer(image_id)
        if image_id is None:
            self._numbered = True
        elif number is None:
            self._own_ids[position] = image_id
        self._image_ids.append(position + 1 if number is None else number)
        self._sizes.extend((height, width))
        return position

    def add_box(
        self,
        image: int,
        label: int,
        xyxy: tuple[float, float, float, float],
        *,
        area: float = math.nan,
        crowd: bool = False,
        difficult: bool = False,
        reference: int = 0,
    ) -> None:
        """Add a box as it is annotated, valid or not.

        Args:
            image: position of its image.
            label: in 0..C-1.
            xyxy: pixels.
            area: pixels² as annotated; NaN = that of the box.
            crowd: COCO iscrowd.
            difficult: VOC difficult.
            reference: from which `locate` (see `build`) names this box: an annotation id, a line, a number.
        """
        self._coordinates.extend(xyxy)
        self._areas.append(area)
        self._labels.append(label)
        self._images.append(image)
        self._references.append(reference)
        self._flags.append(int(crowd) + 2 * int(difficult))

    def size_of(self, image: int) -> tuple[int, int]:
        """(height, width) of the image at a position, (0, 0) = not known."""
        return self._sizes[2 * image], self._sizes[2 * image + 1]

    def path_of(self, image: int) -> str:
        """Path of the image at a position, relative to the root."""
        start = self._path_ends[image - 1] if image else 0
        return self._path_blob[start : self._path_ends[image]].decode("utf-8", "surrogateescape")

    def build(self, class_names: tuple[str, ...], category_ids: tuple[int, ...], locate: Locate) -> DetectionIndex:
        """Build the index; invalid boxes are dropped or clipped, and noted in the log. Called once.

        Args:
            class_names: C names.
            category_ids: C ids of the data set, in label order.
            locate: names the place of a box, for the log.
        """
        images = np.frombuffer(self._images, dtype=np.int32)
        sizes = np.array(self._sizes, dtype=np.int32).reshape(-1, 2)
        boxes = np.frombuffer(self._coordinates, dtype=np.float32).reshape(-1, 4)  # clipped in place
        order = np.flatnonzero(self._validate(boxes, sizes, images, locate))
        if np.any(np.diff(images[order]) < 0):
            order = order[np.argsort(images[order], kind="stable")]
        boxes = boxes[order]
        self._coordinates = array("f")  # half of the memory, freed before more is asked for
        areas = np.frombuffer(self._areas, dtype=np.float32)[order]
        box_areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        flags = np.frombuffer(self._flags, dtype=np.int8)[order]
        labels = np.frombuffer(self._labels, dtype=np.int32)[order]
        counts = np.bincount(images[order], minlength=len(self))
        if self.log.thorough:
            references = np.frombuffer(self._references, dtype=np.int64)[order]
            self._note_oddities(boxes, labels, images[order], references, locate)
            for image in np.flatnonzero(counts == 0) if class_names else ():
                self.log.add("no-objects", self.path_of(int(image)))
        image_ids = np.array(self._image_ids, dtype=np.int64)
        own_ids: tuple[int | str, ...] = ()
        if self._own_ids:
            own_ids = tuple(self._own_ids.get(i, own) for i, own in enumerate(image_ids.tolist()))
            image_ids = np.arange(1, len(self) + 1, dtype=np.int64)
        return DetectionIndex(
            root=self.root,
            path_blob=np.frombuffer(bytes(self._path_blob), dtype=np.uint8),
            path_offsets=np.concatenate([np.zeros(1, np.int64), np.array(self._path_ends, dtype=np.int64)]),
            image_ids=image_ids,
            sizes=sizes,
            box_offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]),
            boxes=boxes,
            labels=labels,
            areas=np.where(np.isfinite(areas) & (areas > 0), areas, box_areas),
            crowd=(flags & 1) != 0,
            difficult=(flags & 2) != 0,
            class_names=class_names,
            category_ids=category_ids,
            problems=self.log.problems(),
            own_ids=own_ids,
            numbered=self._numbered,
        )

    def _validate(
        self, boxes: NDArray[np.float32], sizes: NDArray[np.int32], images: NDArray[np.int32], locate: Locate
    ) -> NDArray[np.bool_]:
        """Clip `boxes` in place and note what is wrong; returns which boxes to keep [M]."""
        keep = np.ones(len(boxes), dtype=np.bool_)
        for start in range(0, len(boxes), ROWS_AT_A_TIME):
            rows = slice(start, start + ROWS_AT_A_TIME)
            box_sizes = sizes[images[rows]]
            verdicts = judge_boxes(boxes[rows], box_sizes)
            for kind, bad in verdicts.items():
                for row in np.flatnonzero(bad) + start:
                    file, where = locate(int(images[row]), int(self._references[row]))
                    self.log.add(kind, file, where, describe_box(boxes[row], sizes[images[row]]))
            limits = np.where(box_sizes > 0, box_sizes, np.inf)[:, [1, 0, 1, 0]].astype(np.float32)
            np.clip(boxes[rows], np.where(np.isinf(limits), -np.inf, 0), limits, out=boxes[rows])
            keep[rows] = ~(verdicts["nan-box"] | verdicts["degenerate-box"] | verdicts["outside-box"])
        return keep

    def _note_oddities(
        self,
        boxes: NDArray[np.float32],
        labels: NDArray[np.int32],
        images: NDArray[np.int32],
        references: NDArray[np.int64],
        locate: Locate,
    ) -> None:
        """Note very small boxes and exact duplicates, which are kept but should be checked."""
        tiny = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]) < TINY_PIXELS
        rows = np.column_stack([images, labels, boxes.view(np.int32)])
        _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        repeated = first[inverse.reshape(-1)] != np.arange(len(rows))
        for kind, odd in (("tiny-box", tiny), ("duplicate-box", repeated)):
            for row in np.flatnonzero(odd):
                file, where = locate(int(images[row]), int(references[row]))
                self.log.add(kind, file, where, describe_box(boxes[row], np.array(self.size_of(int(images[row])))))


def judge_boxes(boxes: NDArray[np.float32], sizes: NDArray[np.int32]) -> dict[str, NDArray[np.bool_]]:
    """Find the boxes that break a rule; a box breaks at most one.

    Args:
        boxes: [M, 4] xyxy pixels.
        sizes: [M, 2] (height, width) of each box's image; (0, 0) = not known, then nothing is outside.
    Returns:
        Kind -> bool [M], True = breaks it: "nan-box", "degenerate-box", "outside-box", "clipped-box".
    """
    x1, y1, x2, y2 = boxes.T
    height = np.where(sizes[:, 0] > 0, sizes[:, 0], np.inf)
    width = np.where(sizes[:, 1] > 0, sizes[:, 1], np.inf)
    nan = ~np.isfinite(boxes).all(axis=1)
    degenerate = ~nan & ((x1 >= x2) | (y1 >= y2))
    fine = ~nan & ~degenerate
    known = sizes[:, 0] > 0
    outside = fine & known & ((x1 >= width) | (y1 >= height) | (x2 <= 0) | (y2 <= 0))
    slack = ROUNDING_PIXELS
    beyond = (x1 < -slack) | (y1 < -slack) | (x2 > width + slack) | (y2 > height + slack)
    return {
        "nan-box": nan,
        "degenerate-box": degenerate,
        "outside-box": outside,
        "clipped-box": fine & known & ~outside & beyond,
    }


def describe_box(box: NDArray[np.float32], size: NDArray[np.integer[Any]]) -> str:
    """The figures of a box for a problem line, e.g. "x1 504 y1 337 x2 504 y2 337, image 640 x 480"."""
    corners = " ".join(f"{name} {value:.6g}" for name, value in zip(("x1", "y1", "x2", "y2"), box, strict=True))
    return f"{corners}, image {size[1]} x {size[0]}" if size[0] > 0 else corners
