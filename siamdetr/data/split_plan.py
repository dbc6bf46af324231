"""Divide images into parts with the same mix of classes.

Iterative stratification (Sechidis et al. 2011, Alg. 1).

Images of one group (duplicates, or frames of one film) always go to the same part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import DataError


def check_shares(shares: Mapping[str, float]) -> dict[str, float]:
    """The shares, scaled to the sum 1.

    Raises:
        DataError: fewer than two parts, a share that is not positive, or a name that is no file name.
    """
    if len(shares) < 2:
        raise DataError(f"split: got {len(shares)} part, expected two or more, such as train=0.8 val=0.2")
    for name, share in shares.items():
        if not re.fullmatch(r"[\w-]+", name):
            raise DataError(f"split: '{name}' cannot name a part; use letters, digits, - and _")
        if not (np.isfinite(share) and share > 0):
            raise DataError(f"split: the share of '{name}' is {share}, expected a number above 0")
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def group_by_pattern(names: Sequence[str], pattern: str) -> NDArray[np.int64]:
    """[N] group of each file name, by a pattern.

    Names in which the pattern's first group (or whole match) is the same belong together.

    Raises:
        DataError: not a regular expression, or one that matches no name.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"--group: '{pattern}' is not a regular expression ({error})") from None
    keys: dict[str, int] = {}
    groups = np.zeros(len(names), dtype=np.int64)
    matched = 0
    for i, name in enumerate(names):
        found = compiled.search(name)
        matched += found is not None
        key = f"\0{name}" if found is None else (found.group(1) if compiled.groups else found.group())
        groups[i] = keys.setdefault(key, len(keys))
    if not matched:
        example = names[0] if names else ""
        raise DataError(f"--group: '{pattern}' matches none of {len(names)} file names, such as '{example}'")
    return groups


def join_groups(*groupings: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N] joined groups: images that share a group in any grouping share one here."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(groupings[0])
    rows, columns = [], []
    for groups in groupings:
        _, first = np.unique(groups, return_index=True)
        representative = first[np.unique(groups, return_inverse=True)[1]]
        rows.append(np.arange(count))
        columns.append(representative)
    links = np.concatenate(rows), np.concatenate(columns)
    graph = coo_array((np.ones(len(links[0]), dtype=bool), links), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def plan_split(
    index: DetectionIndex, shares: Mapping[str, float], *, groups: NDArray[np.int64] | None = None, seed: int = 0
) -> dict[str, NDArray[np.int64]]:
    """Positions of the images of each part, ascending.

    Args:
        index: images and labels; images without objects are spread as well.
        shares: of the images, by the name of the part; scaled to the sum 1.
        groups: [N] images of one number stay together; None: each on its own.
        seed: of the order in which groups are dealt.
    Raises:
        DataError: see `check_shares`; or there are fewer groups than parts.
    """
    shares = check_shares(shares)
    groups = np.arange(len(index)) if groups is None else groups
    names, group_of = np.unique(groups, return_inverse=True)
    if len(names) < len(shares):
        raise DataError(
            f"split: {len(names)} groups of images cannot fill {len(shares)} parts; give fewer parts or smaller groups"
        )
    counts = _counts(index, group_of, len(names))
    part_of = _deal(counts, np.array(list(shares.values())), np.random.default_rng(seed))
    return {name: np.flatnonzero(part_of[group_of] == part) for part, name in enumerate(shares)}


def _counts(index: DetectionIndex, group_of: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """[G, C + 1] boxes of each class in each group; the last column counts images."""
    counts = np.zeros((count, index.num_classes + 1))
    of_box = group_of[np.repeat(np.arange(len(index)), index.box_counts())]
    np.add.at(counts, (of_box, index.labels), 1)
    np.add.at(counts[:, -1], group_of, 1)
    return counts


def _deal(counts: NDArray[np.float64], shares: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int64]:
    """[G] the part of each group.

    The rarest class comes first; each of its groups goes to the part that lacks most of that class.
    """
    wanted = shares[:, None] * counts.sum(0)  # [P, C + 1]
    part_of = np.full(len(counts), -1, dtype=np.int64)
    tie = random.permutation(len(counts))
    while (left := np.flatnonzero(part_of < 0)).size:
        holders = (counts[left, :-1] > 0).sum(0)
        rarest = int(np.where(holders > 0, holders, np.iinfo(np.int64).max).argmin()) if holders.any() else -1
        chosen = left[counts[left, rarest] > 0] if rarest >= 0 else left
        for group in sorted(chosen, key=lambda g: (-counts[g, rarest], tie[g])):
            part = int(np.lexsort((-wanted[:, -1] / shares, -wanted[:, rarest]))[0])
            part_of[group] = part
            wanted[part] -= counts[group]
    return part_of
