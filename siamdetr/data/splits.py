"""Names of splits: "train" finds instances_train2017.json, valid/ is "val", and so on."""

from __future__ import annotations

import re
from collections.abc import Collection

from siamdetr.errors import DataError

ALIASES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "trainval": "trainval",
}
UNDIVIDED = "all"  # the only split of a data set that names none
ORDER = ("train", "trainval", "val", "test")


def common_name(name: str) -> str:
    """The split that a file or folder name means: "instances_val2017" -> "val".

    The name itself if it means none.
    """
    for word in re.split(r"[^a-z]+", name.lower()):
        if word in ALIASES:
            return ALIASES[word]
    return name


def split_names(names: Collection[str]) -> tuple[str, ...]:
    """The names that `find_split` accepts; empty for a data set without splits.

    A split has its common name if that is unique, else the data set's own; train comes first.
    """
    if list(names) == [UNDIVIDED]:
        return ()
    commons = [common_name(name) for name in names]
    shown = [common if commons.count(common) == 1 else name for name, common in zip(names, commons, strict=True)]
    return tuple(sorted(shown, key=in_split_order))


def in_split_order(name: str) -> tuple[int, str]:
    """Sorting key: train, trainval, val, test, then the others by name."""
    common = common_name(name)
    return (ORDER.index(common) if common in ORDER else len(ORDER), name)


def find_split(split: str, names: Collection[str], source: str) -> str:
    """The data set's own name of a split.

    Args:
        split: what the user asked for: the own name, or a common one such as "train", "val", "test".
        names: the data set's own names.
        source: the data set, for the error.
    Raises:
        DataError: no split, or more than one, fits.
    """
    if split in names:
        return split
    fitting = [name for name in names if common_name(name) == common_name(split)]
    if len(fitting) == 1:
        return fitting[0]
    there = ", ".join(split_names(names)) or "none: it is not divided, leave the split out"
    if fitting:
        raise DataError(f"{source}: split '{split}' fits several: {', '.join(sorted(fitting))}; name one of them")
    raise DataError(f"{source}: there is no split '{split}'; available: {there}")
