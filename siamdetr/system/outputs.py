"""Refuse, before the first write, outputs that would fall on what the same command reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from siamdetr.errors import OutputError

Known = TypeVar("Known")
Identity = Path | tuple[int, int]  # an absolute path without links, or device and inode


@dataclass(frozen=True)
class Read:
    """A file or a folder that a command reads.

    Attributes:
        name: how the person named it, such as "--data".
        path: a file, or a folder that is read with everything below it.
        suffixes: endings of the files that are read in the folder, lower case; None: all.
    """

    name: str
    path: Path
    suffixes: frozenset[str] | None = None


@dataclass(frozen=True)
class Written:
    """A file or a folder that a command writes, and the option that named it."""

    name: str
    path: Path


def check_outputs(
    reads: Sequence[Read],
    *,
    files: Sequence[Written] = (),
    folders: Sequence[Written] = (),
    replaced: Sequence[Written] = (),
) -> None:
    """Refuse outputs that would destroy an input, or be an input of the next run.

    Links are followed, so that no other name of a file gets past the check.

    Args:
        reads: what the command reads.
        files: single files that it writes.
        folders: folders that it fills with files which a reader of `reads` could read, too.
        replaced: folders that it deletes and creates again.
    Raises:
        OutputError: naming the option and what it would fall on.
    """
    read_files = {identity: read for read in reads if not read.path.is_dir() for identity in _identities(read.path)}
    read_folders = {identity: read for read in reads if read.path.is_dir() for identity in _identities(read.path)}
    taken: dict[Identity, Written] = {}
    for written in files:
        _check_file(written, read_files, read_folders, taken)
        taken |= dict.fromkeys(_identities(written.path), written)
    for written in folders:
        if (read := _first(_places(written.path), read_folders)) is not None:
            raise OutputError(
                f"{written.name} {written.path}: lies in {read.path}, which is read ({read.name}): originals could be "
                "written over, and the next run would read what this one writes; give a folder outside it"
            )
    for written in replaced:
        anew = dict.fromkeys(_identities(written.path), written)
        for read in reads:
            if _first(_places(read.path), anew) is not None:
                raise OutputError(
                    f"{written.name} {written.path}: is made anew, and {read.path} in it is read ({read.name}); "
                    "give another folder"
                )


def check_empty(folder: Path) -> None:
    """Check that a folder is new or empty, so that no label of a person is overwritten.

    Raises:
        OutputError: something is in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(
            f"{folder}: there is something here already; name a new folder, so that no label is overwritten"
        )


def model_reads(name: str, path: Path) -> list[Read]:
    """The files that opening a model reads.

    They are its file, or the files of its run folder or bundle, without subfolders.
    """
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    return [Read(name, file) for file in files]


def _check_file(
    written: Written, files: dict[Identity, Read], folders: dict[Identity, Read], taken: dict[Identity, Written]
) -> None:
    own = _identities(written.path)
    if (read := _first(own, files)) is not None:
        raise OutputError(
            f"{written.name} {written.path}: is read ({read.name}), and writing would destroy it; give another file"
        )
    read = _first(_places(written.path), folders)
    if read is not None and (read.suffixes is None or written.path.suffix.lower() in read.suffixes):
        raise OutputError(
            f"{written.name} {written.path}: lies in {read.path}, which is read ({read.name}), and would be read as part "
            "of it; give a file outside that folder"
        )
    if (other := _first(own, taken)) is not None:
        raise OutputError(f"{written.name} {written.path}: {other.name} writes that file too; give another")


def _identities(path: Path) -> list[Identity]:
    """The identities of a file, of which equal files share one.

    The inode also identifies it on file systems that ignore case.
    """
    found: list[Identity] = [path.resolve()]
    try:
        status = path.stat()
        found.append((status.st_dev, status.st_ino))
    except OSError:  # it is not there yet
        pass
    return found


def _places(path: Path) -> list[Identity]:
    """The identities of a path and of the folders that it lies in."""
    whole = path.resolve()
    return [identity for place in (whole, *whole.parents) for identity in _identities(place)]


def _first(identities: Sequence[Identity], known: Mapping[Identity, Known]) -> Known | None:
    return next((known[identity] for identity in identities if identity in known), None)
