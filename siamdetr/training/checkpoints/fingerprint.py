"""The fingerprint of a data set in a checkpoint: a resumed run notices other images and labels.

It has a number per image for its name, its labels and its size, and for a sample of the images their content.
That is small compared to the weights, and enough to tell what has changed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import UnreadableImageError
from siamdetr.images.open import content_key, read_bytes

_SAMPLED = 32  # images whose files are read
_Hashes = NDArray[np.int64]


def fingerprint(index: DetectionIndex) -> dict[str, Any]:
    """The fingerprint of an index, in the order of its images: tensors, texts and numbers only.

    Returns:
        `names`, `labels`, `sizes`, `ids`: [N] int64; `sampled`, `contents`: [S] int64, positions of images and hashes
        of their files (0: unreadable); `classes`: names in label order.
    """
    names = _hashes(index.relative_path(i).encode("utf-8", "surrogateescape") for i in range(len(index)))
    sampled = np.unique(np.linspace(0, max(0, len(index) - 1), min(_SAMPLED, len(index))).round().astype(np.int64))
    parts = {
        "names": names,
        "labels": _hashes(_label_bytes(index)),
        "sizes": index.sizes[:, 0].astype(np.int64) << 32 | index.sizes[:, 1].astype(np.int64),
        "ids": index.image_ids.astype(np.int64),
        "sampled": sampled,
        "contents": np.array([_content(index, int(i)) for i in sampled], dtype=np.int64),
    }
    return {key: torch.from_numpy(values.copy()) for key, values in parts.items()} | {
        "classes": list(index.class_names)
    }


def changes(then: Mapping[str, Any], index: DetectionIndex) -> list[str]:
    """The differences from an earlier fingerprint, one text each.

    Args:
        then: the fingerprint in a checkpoint.
        index: of the images now.
    """
    now = fingerprint(index)
    try:
        before = {key: np.asarray(then[key]) for key in ("names", "labels", "sizes", "ids", "sampled", "contents")}
        classes = [str(name) for name in then["classes"]]
        return _class_changes(classes, now["classes"]) + _image_changes(before, now, index)
    except (KeyError, TypeError, IndexError, ValueError):
        return ["the checkpoint's fingerprint of it is damaged"]


def _class_changes(then: list[str], now: list[str]) -> list[str]:
    return [] if then == now else [f"classes {_few(then)} then, {_few(now)} now"]


def _image_changes(then: Mapping[str, NDArray[Any]], now: Mapping[str, Any], index: DetectionIndex) -> list[str]:
    place = {int(name): i for i, name in enumerate(then["names"])}
    names = now["names"].tolist()
    new = [i for i, name in enumerate(names) if name not in place]
    gone = len(place.keys() - set(names))
    found = []
    if gone or new or len(names) != len(then["names"]):
        first = f" (first {index.relative_path(new[0])})" if new else ""
        found.append(f"{len(then['names'])} images then, {len(names)} now: {gone} gone, {len(new)} new{first}")
    elif names != then["names"].tolist():
        found.append("the order of its images")
    shared = [(i, place[name]) for i, name in enumerate(names) if name in place]
    for key, what in (("labels", "labels"), ("sizes", "sizes"), ("ids", "ids")):
        values = now[key].numpy()
        found += _named([i for i, j in shared if values[i] != then[key][j]], what, index)
    read = dict(zip(then["sampled"].tolist(), then["contents"].tolist(), strict=True))
    of_place = {j: i for i, j in shared}
    changed = [of_place[j] for j, content in read.items() if j in of_place and _content(index, of_place[j]) != content]
    return found + _named(changed, f"contents, of {len(read)} that were compared", index)


def _named(positions: list[int], what: str, index: DetectionIndex) -> list[str]:
    if not positions:
        return []
    count = "1 image" if len(positions) == 1 else f"{len(positions)} images"
    return [f"{count} with other {what} (first {index.relative_path(positions[0])})"]


def _label_bytes(index: DetectionIndex) -> Iterable[bytes]:
    offsets = index.box_offsets.tolist()
    for start, stop in itertools.pairwise(offsets):
        rows = slice(start, stop)
        yield index.boxes[rows].tobytes() + index.labels[rows].tobytes() + index.crowd[rows].tobytes()


def _content(index: DetectionIndex, i: int) -> int:
    try:
        return int.from_bytes(content_key(read_bytes(index.path(i)))[:8], "little", signed=True)
    except UnreadableImageError:
        return 0


def _hashes(texts: Iterable[bytes]) -> _Hashes:
    joined = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return np.frombuffer(joined, dtype="<i8").astype(np.int64)


def _few(names: list[str], shown: int = 5) -> str:
    return "[" + ", ".join(names[:shown]) + (f", … ({len(names)})" if len(names) > shown else "") + "]"
