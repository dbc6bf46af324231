"""Unique file names."""

from __future__ import annotations

from collections.abc import Sequence


def unique_stems(stems: Sequence[str]) -> list[str]:
    """The stems in order; a repeated one gets a number, also if it differs in upper and lower case only.

    Some file systems do not tell A from a.
    """
    unique: list[str] = []
    taken: set[str] = set()
    for stem in stems:
        name, number = stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        unique.append(name)
    return unique
