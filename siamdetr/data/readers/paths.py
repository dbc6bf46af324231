"""The files of a data set, and the files that names in annotations mean on this machine."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from siamdetr.images.header import is_companion_folder, is_image

_SAMPLE = 50  # names that are tried to find the folder of the images


def walk_files(root: Path) -> Iterator[str]:
    """Paths of all files below `root`, relative with forward slashes, sorted folder by folder.

    Without hidden files and the companion folders of operating systems. Links to folders are followed, each real folder
    once.
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
    """As `walk_files`, for files with the suffix of an image format that is decoded."""
    return (path for path in walk_files(root) if is_image(path))


def visible_subfolders(root: Path) -> list[Path]:
    """The folders directly in `root`, sorted, without hidden and companion folders."""
    if not root.is_dir():
        return []
    return [
        root / name for name in sorted(os.listdir(root)) if not is_companion_folder(name) and (root / name).is_dir()
    ]


def visible_files(root: Path, *patterns: str) -> list[Path]:
    """Files below `root` that match a glob pattern, sorted.

    Hidden ones such as ._a.json (which macOS writes) are left out.
    """
    found = {file for pattern in patterns for file in root.glob(pattern) if file.is_file()}
    return sorted(file for file in found if not any(is_companion_folder(part) for part in file.relative_to(root).parts))


class FolderListing:
    """Tell whether files exist, by one directory listing per folder instead of one call per file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names: dict[str, frozenset[str]] = {}
        self._folded: dict[str, dict[str, str]] = {}

    def names(self) -> Iterator[str]:
        """The files of every folder that was listed so far, sorted folder by folder.

        Hidden ones are left out.
        """
        for folder, names in self._names.items():
            head = f"{folder}/" if folder else ""
            yield from (head + name for name in sorted(names) if not name.startswith("."))

    def __contains__(self, path: str) -> bool:
        folder, name = os.path.split(path)
        return name in self._listed(folder)

    def find(self, path: str) -> str | None:
        """The file that `path` means.

        The file itself, else the only file in its folder whose name differs only in case or Unicode form.
        """
        if path in self:
            return path
        folder, name = os.path.split(path)
        if folder not in self._folded:
            self._folded[folder] = _unique_folds(self._listed(folder))
        found = self._folded[folder].get(_fold(name))
        return None if found is None else f"{folder}/{found}" if folder else found

    def _listed(self, folder: str) -> frozenset[str]:
        names = self._names.get(folder)
        if names is None:
            try:
                names = frozenset(os.listdir(self.root / folder))
            except (OSError, ValueError):  # no such folder; a name with a null byte
                names = frozenset()
            self._names[folder] = names
        return names


@dataclass(frozen=True)
class NamedFiles:
    """The folder of the files that an annotation file names.

    Args:
        folder: that the names are relative to.
        kept: how many last components of a name are used; 0: all. Names from another machine, such as C:\\data\\a.jpg,
            and addresses begin with components that do not exist here.
    """

    folder: Path
    kept: int

    def local(self, name: str) -> str:
        """`name` with forward slashes, relative to `folder`."""
        if self.kept == 0 and "\\" not in name:
            return os.path.normpath(name) if "./" in name or "//" in name else name
        return "/".join(split_name(name)[-self.kept :])


def locate(names: Sequence[str], folders: Sequence[Path]) -> NamedFiles | None:
    """The folder that holds most of a sample of `names`.

    The first best folder, with as many components of the names as possible. Names that differ from the files' only in
    case or Unicode form count if nothing else matches.

    Args:
        names: as an annotation file writes them.
        folders: candidates, the likeliest first.
    """
    sample = [name for name in names[:: max(1, len(names) // _SAMPLE)][:_SAMPLE] if "\0" not in name]
    exact = _best_place(sample, folders, lambda folder, local: os.path.isfile(folder / local))
    if exact is not None:
        return exact
    listings = {folder: FolderListing(folder) for folder in folders}
    return _best_place(sample, folders, lambda folder, local: listings[folder].find(local) is not None)


def _best_place(
    sample: Sequence[str], folders: Sequence[Path], is_there: Callable[[Path, str], bool]
) -> NamedFiles | None:
    best, most = None, 0
    for kept in (0, 3, 2, 1):
        for folder in folders:
            place = NamedFiles(folder, kept)
            hits = sum(is_there(folder, place.local(name)) for name in sample)
            if hits > most:
                best, most = place, hits
    return best


def repeated_locals(names: Sequence[str], place: NamedFiles) -> frozenset[str]:
    """Local names to which several different `names` are shortened.

    They do not say which file is meant.
    """
    if place.kept == 0:
        return frozenset()
    counts = Counter(place.local(name) for name in set(names))
    return frozenset(local for local, count in counts.items() if count > 1)


def split_name(name: str) -> list[str]:
    """The components of a path or address of any operating system.

    "C:\\a\\b.jpg", "file:///a/b.jpg" and "/a/b.jpg" give a, b.jpg.
    """
    plain = re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://[^/]*/|[A-Za-z]:)", "", name).split("?")[0] if ":" in name else name
    return [part for part in re.split(r"[/\\]+", plain) if part not in ("", ".")]


def relative(path: Path, root: Path) -> str:
    """`path` relative to `root`, with forward slashes; "." for the root itself."""
    return os.path.relpath(path, root).replace(os.sep, "/")


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _unique_folds(names: frozenset[str]) -> dict[str, str]:
    counts = Counter(map(_fold, names))
    return {_fold(name): name for name in names if counts[_fold(name)] == 1}
