"""The files of a data set: which there are, and what their names mean on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from siamdetr.images.header import is_companion_folder, is_image


def walk_files(root: Path) -> Iterator[str]:
    """Paths of all files below `root`, relative with forward slashes, sorted folder by folder.

    Hidden files and the companion folders of operating systems are left out. Links to folders are followed, each real folder once.
    """
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not is_companion_folder(name))
        prefix = os.path.relpath(folder, root).replace(os.sep, "/")
        head = "" if prefix == "." else f"{prefix}/"
        yield from (head + name for name in sorted(names) if not name.startswith("."))


def walk_images(root: Path) -> Iterator[str]:
    """`walk_files`, of files that end like an image that is decoded."""
    return (path for path in walk_files(root) if is_image(path))


class FolderListing:
    """Answers "does this file exist?" with one directory listing per folder instead of one call per file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names: dict[str, frozenset[str]] = {}

    def names(self) -> Iterator[str]:
        """The files of every folder that was asked about so far, sorted folder by folder."""
        for folder, names in self._names.items():
            head = f"{folder}/" if folder else ""
            yield from (head + name for name in sorted(names))

    def __contains__(self, path: str) -> bool:
        folder, name = os.path.split(path)
        names = self._names.get(folder)
        if names is None:
            try:
                names = frozenset(os.listdir(self.root / folder))
            except OSError:
                names = frozenset()
            self._names[folder] = names
        return name in names


def relative(path: Path, root: Path) -> str:
    """`path` as seen from `root`, with forward slashes; "." for the root itself."""
    return os.path.relpath(path, root).replace(os.sep, "/")
