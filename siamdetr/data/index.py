"""The index of a data set: which images, which boxes, which classes, held in a dozen arrays.

Arrays, not objects: 1.3 million images with 8 boxes each take about 0.4 GB, and worker processes that are forked share
those pages for good, because no reference count is ever written into them (`benchmarks/index_memory.py` shows both).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from siamdetr.data.problems import Problem, summarize
from siamdetr.errors import DataError

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class DetectionIndex:
    """N images, M boxes, C classes.

    Arrays are read-only; labels and boxes of image i lie at `box_slice(i)`.

    Frame: sizes and boxes refer to the image AFTER its EXIF rotation, which is how every part of siamdetr sees it.

    Args:
        root: folder that the paths are relative to.
        path_blob: uint8, the UTF-8 paths one after the other.
        path_offsets: int64 [N + 1], where each path begins in the blob.
        image_ids: int64 [N], all different: the data set's own ids (COCO) where all are integers of 64 bits, else 1..N.
        sizes: int32 [N, 2] (height, width) in pixels; (0, 0) = not known before the file is opened.
        box_offsets: int64 [N + 1], where each image's boxes begin.
        boxes: float32 [M, 4] xyxy in pixels, x1 < x2 and y1 < y2, inside the image.
        labels: int32 [M] in 0..C-1.
        areas: float32 [M] pixels², as annotated (COCO: of the segmentation, which sorts small/medium/large), else of
            the box.
        crowd: bool [M], True = COCO iscrowd: a region of many objects; not trained on, ignored in scoring.
        difficult: bool [M], True = VOC difficult.
        class_names: C names.
        category_ids: C ids that the data set itself uses, in label order.
        problems: what was left out or corrected when reading.
        own_ids: N ids of the data set itself, where not all of them are integers of 64 bits (texts, longer integers);
            else empty.
        numbered: True: the ids 1..N are ours, because the data set has none (VOC, YOLO, folders) or its parts repeat
            them.
    """

    root: Path
    path_blob: NDArray[np.uint8]
    path_offsets: Indices
    image_ids: Indices
    sizes: NDArray[np.int32]
    box_offsets: Indices
    boxes: NDArray[np.float32]
    labels: NDArray[np.int32]
    areas: NDArray[np.float32]
    crowd: NDArray[np.bool_]
    difficult: NDArray[np.bool_]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    problems: tuple[Problem, ...] = ()
    own_ids: tuple[int | str, ...] = ()
    numbered: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        return (
            f"DetectionIndex({len(self)} images, {len(self.boxes)} boxes, {len(self.class_names)} classes, {self.root})"
        )

    @property
    def num_boxes(self) -> int:
        """Boxes of all images together, crowds included."""
        return len(self.boxes)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for plain folders."""
        return len(self.class_names)

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        values = (getattr(self, field.name) for field in fields(self))
        return sum(value.nbytes for value in values if isinstance(value, np.ndarray))

    def relative_path(self, i: int) -> str:
        """Path of image `i`, relative to the root, with forward slashes."""
        return (
            self.path_blob[self.path_offsets[i] : self.path_offsets[i + 1]].tobytes().decode("utf-8", "surrogateescape")
        )

    def path(self, i: int) -> Path:
        """Path of image `i`."""
        return self.root / self.relative_path(i)

    def own_id(self, i: int) -> int | str:
        """The id that the data set itself gives image `i`; 1..N where it has none."""
        return self.own_ids[i] if self.own_ids else int(self.image_ids[i])

    def positions_of_ids(self) -> dict[int | str, int]:
        """The data set's own id of each image -> its position.

        An id is also found by its text.
        """
        found: dict[int | str, int] = {str(self.own_id(i)): i for i in range(len(self))}
        found.update({self.own_id(i): i for i in range(len(self))})
        return found

    def box_slice(self, i: int) -> slice:
        """The slice of image `i` in `boxes`, `labels`, `areas`, `crowd`, `difficult`."""
        return slice(int(self.box_offsets[i]), int(self.box_offsets[i + 1]))

    def boxes_of(self, i: int) -> NDArray[np.float32]:
        """[m, 4] xyxy pixels of image `i`, a writable copy."""
        return self.boxes[self.box_slice(i)].copy()

    def labels_of(self, i: int) -> NDArray[np.int32]:
        """[m] labels of image `i`, a writable copy."""
        return self.labels[self.box_slice(i)].copy()

    def box_counts(self) -> Indices:
        """[N] number of boxes of each image."""
        return np.diff(self.box_offsets)

    def class_counts(self) -> Indices:
        """[C] number of boxes of each class, crowds included."""
        return np.bincount(self.labels, minlength=self.num_classes).astype(np.int64)

    def subset(self, indices: Sequence[int] | Indices) -> DetectionIndex:
        """The images at `indices` (positions in 0..N-1, in the order given), with their boxes."""
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"subset: positions from {chosen.min()} to {chosen.max()}, expected 0..{len(self) - 1}")
        letters, path_offsets = _gather(self.path_offsets, chosen)
        rows, box_offsets = _gather(self.box_offsets, chosen)
        return replace(
            self,
            path_blob=self.path_blob[letters],
            path_offsets=path_offsets,
            image_ids=self.image_ids[chosen],
            sizes=self.sizes[chosen],
            box_offsets=box_offsets,
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            areas=self.areas[rows],
            crowd=self.crowd[rows],
            difficult=self.difficult[rows],
            own_ids=tuple(self.own_ids[i] for i in chosen) if self.own_ids else (),
        )

    def fraction(self, share: float, *, seed: int = 0) -> DetectionIndex:
        """A part of the images, balanced by class and nested: with one seed, the 10 % are part of the 20 %.

        Each image belongs to the rarest of its classes (or to the images without boxes); every such group is shuffled
        and spread evenly over [0, 1), and the images below `share` come first. So each group gives its share, give or
        take one image.

        Args:
            share: in (0, 1]; at least one image is kept.
            seed: of the shuffle.
        """
        if not 0 < share <= 1:
            raise ValueError(f"fraction: got {share}, expected a share above 0 and at most 1, e.g. 0.1 for 10 %")
        if share == 1 or len(self) == 0:
            return self
        order = np.argsort(self._spread(seed), kind="stable")
        return self.subset(np.sort(order[: max(1, round(share * len(self)))]))

    def _spread(self, seed: int) -> NDArray[np.float64]:
        """[N] a place in [0, 1) for each image; within a group of images the places are evenly spaced."""
        generator = np.random.default_rng(seed)
        shuffle = generator.permutation(len(self))
        rarity = np.argsort(np.argsort(-self.class_counts(), kind="stable"), kind="stable")  # [C], most frequent first
        group = np.zeros(len(self), dtype=np.int64)
        image_of_box = np.repeat(np.arange(len(self)), self.box_counts())
        np.maximum.at(group, image_of_box, rarity[self.labels] + 1)
        by_group = shuffle[np.argsort(group[shuffle], kind="stable")]  # group after group, shuffled inside
        sizes = np.bincount(group, minlength=self.num_classes + 1)
        starts = np.cumsum(sizes) - sizes
        offsets = generator.random(len(sizes))
        rank = np.arange(len(self)) - starts[group[by_group]]
        places = np.empty(len(self))
        places[by_group] = (rank + offsets[group[by_group]]) / sizes[group[by_group]]
        return places

    def without_labels(self) -> DetectionIndex:
        """The same images without boxes and classes, for pretraining."""
        return replace(
            self,
            box_offsets=np.zeros(len(self) + 1, dtype=np.int64),
            boxes=np.zeros((0, 4), dtype=np.float32),
            labels=np.zeros(0, dtype=np.int32),
            areas=np.zeros(0, dtype=np.float32),
            crowd=np.zeros(0, dtype=np.bool_),
            difficult=np.zeros(0, dtype=np.bool_),
            class_names=(),
            category_ids=(),
        )


def object_counts(index: DetectionIndex) -> Indices:
    """[N] number of objects of each image: its boxes without the crowds."""
    image_of_box = np.repeat(np.arange(len(index)), index.box_counts())
    return np.bincount(image_of_box[~index.crowd], minlength=len(index)).astype(np.int64)


def require_labels(index: DetectionIndex, source: str | None = None) -> DetectionIndex:
    """Check that an index can be trained on or scored; returns it.

    Raises:
        DataError: it has no image, or no box except crowds.
    """
    name = source or str(index.root)
    found = summarize(index.problems)
    why = f"; {found}" if found else f"; `siamdetr doctor {index.root}` says why"
    if len(index) == 0:
        raise DataError(f"{name}: got zero images, expected at least one{why}")
    if index.num_boxes == 0 or bool(index.crowd.all()):
        raise DataError(
            f"{name}: got {len(index)} images and not one labelled box, expected at least one{why}; "
            "images without labels can be pretrained on with `siamdetr train`"
        )
    return index


def _gather(offsets: Indices, chosen: Indices) -> tuple[Indices, Indices]:
    """Rows of the ragged items `chosen`, and the offsets of the new ragged array."""
    counts = (offsets[1:] - offsets[:-1])[chosen]
    new_offsets = np.zeros(len(chosen) + 1, dtype=np.int64)
    np.cumsum(counts, out=new_offsets[1:])
    rows = np.arange(new_offsets[-1]) + np.repeat(offsets[chosen] - new_offsets[:-1], counts)
    return rows, new_offsets
