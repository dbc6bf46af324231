"""Remarks on images that show the same as an earlier image with other bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from siamdetr.data.duplicates import ImageHashes, duplicate_groups, find_duplicates
from siamdetr.data.index import DetectionIndex
from siamdetr.data.remarks import Remark


def near_duplicates(
    digests: NDArray[np.uint64], images: ImageHashes, parts: Mapping[str, DetectionIndex]
) -> Iterator[Remark]:
    """Every image that is a near-duplicate of an earlier one; see `data.duplicates`.

    Args:
        digests: uint64 [N, 2] of the files' contents, splits one after the other; zeros = could not be read. Of files
            of the same bytes only the first is compared.
        images: of the same files.
        parts: the splits.
    """
    _, first = np.unique(digests, axis=0, return_index=True)
    rows = np.sort(first[digests[first].any(axis=1)])
    every = [(name, i) for name, part in parts.items() for i in range(len(part))]
    for group in duplicate_groups(find_duplicates(images.subset(rows))):
        members = [every[rows[row]] for row in group]
        for number, (name, i) in enumerate(members[1:], start=1):
            other, j = next((place for place in members[:number] if place[0] != name), members[0])
            kind = "near-duplicate" if other == name else "near-leakage"
            what = f"much like {parts[other].relative_path(j)}" + ("" if other == name else f" of split '{other}'")
            yield Remark(kind, name, parts[name].relative_path(i), what)
