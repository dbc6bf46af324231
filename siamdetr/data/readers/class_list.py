"""The classes of a data set.

Ids and names become labels 0..C-1; categories of the same name become one class.
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
        ids: C ascending ids, which are written for the classes of detections.
    """

    labels: dict[int, int]
    names: tuple[str, ...]
    ids: tuple[int, ...]


def class_list(
    names: Mapping[int, str], file: str, log: ProblemLog, counts: Mapping[int, int] | None = None
) -> ClassList:
    """Classes in the order of their ids.

    Categories of the same name are one class, because no score could distinguish them. The class has the id with the
    most boxes (Roboflow exports an empty category 0 with the name of the project), and of several such ids the last.

    Args:
        names: category id -> name.
        file: named in the log.
        log: of ids that share a name.
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
