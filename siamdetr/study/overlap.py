"""Images that are both pretrained on and scored, found by content, not by name."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import StudyError, UnreadableImageError
from siamdetr.images.open import content_key, read_bytes


@dataclass(frozen=True)
class Overlap:
    """One image that is in both sets: its unlabelled file and its held-out file."""

    unlabelled: Path
    held_out: Path


def find_overlap(unlabelled: DetectionIndex, held_out: Sequence[DetectionIndex]) -> list[Overlap]:
    """The unlabelled images whose content is that of a held-out one.

    Only files of equal length are read, so that a million unlabelled images cost no more than their directory entries.

    Args:
        unlabelled: images to pretrain on.
        held_out: images that choose or score the models.
    """
    by_length: dict[int, list[Path]] = defaultdict(list)
    for path in _paths(held_out):
        by_length[_length(path)].append(path)
    keys: dict[int, dict[bytes, Path]] = {}
    found: list[Overlap] = []
    for path in _paths([unlabelled]):
        length = _length(path)
        if length <= 0 or length not in by_length:
            continue
        if length not in keys:
            keys[length] = {key: other for other in by_length[length] if (key := _key(other)) is not None}
        twin = keys[length].get(_key(path) or b"")
        if twin is not None:
            found.append(Overlap(path, twin))
    return found


def refuse_overlap(overlap: Sequence[Overlap], total: int) -> None:
    """Refuse a study that would be flattered.

    Raises:
        StudyError: there is an overlap; the text counts it and names the first ones.
    """
    if overlap:
        lines = "\n".join(f"  {one.unlabelled} is {one.held_out}" for one in overlap[:5])
        more = f"\n  … and {len(overlap) - 5} more" if len(overlap) > 5 else ""
        raise StudyError(
            f"--unlabelled: {len(overlap)} of {total} images to pretrain on are images of the val or test part, by their content:\n{lines}"
            f"{more}\nTheir scores would flatter pretraining. Take them out, or say --allow-overlap"
        )


def _paths(parts: Iterable[DetectionIndex]) -> Iterable[Path]:
    return (part.path(i) for part in parts for i in range(len(part)))


def _length(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _key(path: Path) -> bytes | None:
    try:
        return content_key(read_bytes(path))
    except UnreadableImageError:
        return None
