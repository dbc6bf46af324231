"""The classes of a data set.

Ids and names become labels 0..C-1, and categories of one name become one class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from siamdetr.data.problems import ProblemLog


@dataclass(frozen=True)
class ClassList:
    """C classes.

    Args:
        labels: category id -> label; several ids may have one label.
        names: C names, all different.
        ids: C ids that stand for the classes wherever detections are written, ascending.
    """

    labels: dict[int, int]
    names: tuple[str, ...]
    ids: tuple[int, ...]


def class_list(
    names: Mapping[int, str], file: str, log: ProblemLog, counts: Mapping[int, int] | None = None
) -> ClassList:
    """Classes in the order of their ids.

    Categories of one name are one class: two labels of one name could not be told apart by any score. The id of the
    class is that with the most boxes (Roboflow exports an empty category 0 that is named like its project); of equal
    ones the last.

    Args:
        names: category id -> name.
        file: named in the log.
        log: notes ids that share a name.
        counts: category id -> number of boxes.
    """
    of_name: dict[str, list[int]] = {}
    for key in sorted(names):
        of_name.setdefault(names[key], []).append(key)
    boxes = counts or {}
    chosen = {name: max(keys, key=lambda key: (boxes.get(key, 0), key)) for name, keys in of_name.items()}
    for name, keys in of_name.items():
        for key in keys[1:]:
            log.add("duplicate-category", file, f"category {key}", f"'{name}' has the ids {', '.join(map(str, keys))}")
    ids = sorted(chosen.values())
    label_of = {names[key]: label for label, key in enumerate(ids)}
    return ClassList({key: label_of[name] for key, name in names.items()}, tuple(names[key] for key in ids), tuple(ids))
