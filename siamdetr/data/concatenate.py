"""One index of several, such as all parts of a data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from siamdetr.data.index import DetectionIndex, Indices
from siamdetr.errors import DataError


def concatenate(parts: Sequence[DetectionIndex]) -> DetectionIndex:
    """Join several indices into one, e.g. all splits of a data set.

    Ids are kept, unless two parts share one: then all are 1..N.

    Raises:
        DataError: the parts do not have the same classes in the same order.
    """
    if not parts:
        raise DataError("concatenate: got no index at all, expected at least one")
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    for part in parts[1:]:
        if part.class_names == first.class_names and part.category_ids != first.category_ids:
            raise DataError(
                f"{part.root}: its classes have the ids {_few(part.category_ids)}, in {first.root} the same classes have "
                f"{_few(first.category_ids)}; give both the same ids, since detections bear the data set's own"
            )
        if part.class_names != first.class_names:
            raise DataError(
                f"{part.root}: classes {_few(part.class_names)} differ from {_few(first.class_names)} of {first.root}; "
                "data can be joined only with the same classes in the same order (or without labels)"
            )
    root = Path(os.path.commonpath([os.path.abspath(part.root) for part in parts]))
    blobs, offsets = zip(*(_rebased_paths(part, root) for part in parts), strict=True)
    image_ids, own_ids, numbered = _joined_ids(parts)
    return DetectionIndex(
        root=root,
        path_blob=np.concatenate(blobs),
        path_offsets=_joined_offsets(offsets),
        image_ids=image_ids,
        sizes=np.concatenate([part.sizes for part in parts]),
        box_offsets=_joined_offsets([part.box_offsets for part in parts]),
        boxes=np.concatenate([part.boxes for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        areas=np.concatenate([part.areas for part in parts]),
        crowd=np.concatenate([part.crowd for part in parts]),
        difficult=np.concatenate([part.difficult for part in parts]),
        class_names=first.class_names,
        category_ids=first.category_ids,
        problems=tuple(problem for part in parts for problem in part.problems),
        own_ids=own_ids,
        numbered=numbered,
    )


def _joined_ids(parts: Sequence[DetectionIndex]) -> tuple[Indices, tuple[int | str, ...], bool]:
    """`image_ids`, `own_ids` and `numbered` of several parts.

    They are the data set's own ids, unless two parts share one.
    """
    total = sum(map(len, parts))
    fresh = np.arange(1, total + 1, dtype=np.int64)
    if any(part.numbered for part in parts):
        return fresh, (), True
    if any(part.own_ids for part in parts):
        own = tuple(part.own_id(i) for part in parts for i in range(len(part)))
        return (fresh, own, False) if len(set(own)) == total else (fresh, (), True)
    joined = np.concatenate([part.image_ids for part in parts])
    return (joined, (), False) if len(np.unique(joined)) == total else (fresh, (), True)


def _joined_offsets(parts: Sequence[Indices]) -> Indices:
    """Offsets of ragged arrays laid one after the other."""
    counts = [np.diff(part) for part in parts]
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.concatenate(counts), dtype=np.int64)])


def _rebased_paths(part: DetectionIndex, root: Path) -> tuple[NDArray[np.uint8], Indices]:
    """The paths of `part`, now relative to `root` above it."""
    prefix = os.path.relpath(os.path.abspath(part.root), root).replace(os.sep, "/")
    if prefix == ".":
        return part.path_blob, part.path_offsets
    head = np.frombuffer(f"{prefix}/".encode("utf-8", "surrogateescape"), dtype=np.uint8)
    offsets = part.path_offsets + np.arange(len(part) + 1) * len(head)
    blob = np.empty(int(offsets[-1]), dtype=np.uint8)
    is_head = np.zeros(len(blob), dtype=np.bool_)
    is_head[(offsets[:-1, None] + np.arange(len(head))).reshape(-1)] = True
    blob[is_head] = np.tile(head, len(part))
    blob[~is_head] = part.path_blob
    return blob, offsets


def _few(names: Sequence[object], shown: int = 5) -> str:
    more = f", ... ({len(names)})" if len(names) > shown else ""
    return "[" + ", ".join(map(str, names[:shown])) + more + "]"
