"""Image entries of a COCO file: their files on this machine, and which ids are unique."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siamdetr.data.builder import IndexBuilder
from siamdetr.data.problems import ProblemLog
from siamdetr.data.readers.fields import as_id, as_number
from siamdetr.data.readers.paths import (
    FolderListing,
    NamedFiles,
    locate,
    relative,
    repeated_locals,
    visible_subfolders,
)
from siamdetr.data.readers.sizes import HeaderReader, note_mismatch, usable_size
from siamdetr.data.splits import common_name
from siamdetr.images.header import is_image
from siamdetr.system.progress import Progress

LEFT_OUT = -1  # position of an image that was left out: its boxes are left out without a note
AMBIGUOUS = -2  # position of an id that several files have: its boxes are counted in a note
NAME_KEYS = ("file_name", "coco_url", "flickr_url")  # LVIS has only the addresses
_OTHER_FOLDERS = 50  # folders that are searched for images, besides the usual ones


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of `images`: its own id, file name, path on this machine, and annotated (height, width).

    The size is 0 where it is not given.
    """

    key: int | str
    name: str
    local: str
    size: tuple[int, int]


def image_folders(file: Path, root: Path) -> list[Path]:
    """The folders in which images may lie, in the order of the search.

    Beside the JSON, the root, images/, data/, <split>/, images/<split>/, then any other folder there.
    """
    stem = file.stem.removeprefix("instances_")
    splits = dict.fromkeys((stem, common_name(stem)))
    if common_name(stem) == "val":
        splits["valid"] = None
    bases = dict.fromkeys((file.parent, root, file.parent.parent))
    usual = (
        "",
        "images",
        "data",
        *splits,
        *(f"images/{name}" for name in splits),
        *(f"{name}/images" for name in splits),
    )
    named = [base / sub for base in bases for sub in usual]
    others = [folder for base in dict.fromkeys((file.parent, root)) for folder in visible_subfolders(base)]
    return list(dict.fromkeys((*named, *others[:_OTHER_FOLDERS])))


def read_images(
    entries: list[Any], folders: list[Path], name: str, builder: IndexBuilder, progress: Progress | None
) -> dict[int | str, int]:
    """Read the images; returns the position of each id, `LEFT_OUT` or `AMBIGUOUS`."""
    log = builder.log
    named = list(_named_entries(entries, name, log))
    names = [text for _, text, _ in named]
    place = locate(names, folders) or NamedFiles(builder.root, 0)
    listing, prefix = FolderListing(place.folder), relative(place.folder, builder.root)
    head = "" if prefix == "." else f"{prefix}/"
    positions: dict[int | str, int] = {}
    kept = list(_kept_entries(named, place, listing, positions, head=head, name=name, log=log))
    paths = [_from_root(entry.local, head, place.folder, builder.root) for entry in kept]
    with HeaderReader(builder.root, len(paths)) as reader:
        headers = reader.read(paths, progress)
    files: set[str] = set()
    for entry, path, header in zip(kept, paths, headers, strict=True):
        where = f"image {entry.key}"
        size = usable_size(header, path, where, log)
        if size is None:
            positions[entry.key] = LEFT_OUT
            continue
        note_mismatch(entry.size, header, path, where, log)
        if path in files:
            log.add("duplicate-image-file", path, where, f"listed in {name}")
        files.add(path)
        positions[entry.key] = builder.add_image(path, image_id=entry.key, height=size[0], width=size[1])
    if log.thorough:
        _note_unlisted(listing, {entry.local for entry in kept}, head, log)
    return positions


def _named_entries(entries: list[Any], name: str, log: ProblemLog) -> Iterator[tuple[int | str, str, tuple[int, int]]]:
    """(own id, file name, annotated (height, width)) of the entries that have an id and a name.

    Ids may be repeated here.
    """
    for number, item in enumerate(entries):
        entry = item if isinstance(item, dict) else {}
        key = as_id(entry.get("id"))
        text = _name_of(entry)
        if key is None or not text:
            given = ", ".join(f"{field} {entry[field]!r:.60}" for field in ("id", *NAME_KEYS) if field in entry)
            log.add("bad-image-entry", name, f"image number {number}", given or f"{item!r:.60}")
            continue
        size = _side(entry, "height", key, name, log), _side(entry, "width", key, name, log)
        yield key, text, size


def _name_of(entry: dict[str, Any]) -> str:
    """The file name of an entry, else its first address; "": there is none, or the file name is not a text."""
    text = entry.get(NAME_KEYS[0], "")
    if text == "":
        text = next((entry[key] for key in NAME_KEYS[1:] if isinstance(entry.get(key), str) and entry[key]), "")
    return text if isinstance(text, str) else ""


def _kept_entries(
    named: list[tuple[int | str, str, tuple[int, int]]],
    place: NamedFiles,
    listing: FolderListing,
    positions: dict[int | str, int],
    *,
    head: str,
    name: str,
    log: ProblemLog,
) -> Iterator[_Entry]:
    """The entries with a unique id and an existing file; `positions` gets the others."""
    first: dict[int | str, str] = {}
    ambiguous = {key for key, text, _ in named if first.setdefault(key, text) != text}
    repeated = repeated_locals([text for _, text, _ in named], place)
    for key, text, size in named:
        local = place.local(text)
        where = f"image {key}"
        if key in ambiguous:
            positions[key] = AMBIGUOUS
            log.add("ambiguous-image", name, where, text)
            continue
        if key in positions:
            log.add("duplicate-image-id", name, where, text)
            continue
        positions[key] = LEFT_OUT
        found = None if "\0" in local else listing.find(local)
        if local in repeated:
            log.add("ambiguous-file", name, where, f"{text}: {local} fits several entries")
        elif found is None:
            log.add(
                "missing-image", head + local, where, f"listed in {name}" + ("" if text == local else f" as {text}")
            )
        else:
            yield _Entry(key, text, found, size)


def _from_root(local: str, head: str, folder: Path, root: Path) -> str:
    """The path of a file relative to `root`; an absolute name does not change."""
    return relative(folder / local, root) if local.startswith(("/", "..")) or "/../" in local else head + local


def _side(entry: dict[str, Any], field: str, key: int | str, name: str, log: ProblemLog) -> int:
    """An annotated height or width in pixels; 0: not given, or invalid, which is noted."""
    value = entry.get(field)
    number = as_number(value)
    if number is not None and 0 <= number < 2**31:
        return round(number)
    if value is not None:
        log.add("bad-field", name, f"image {key}", f"{field} {value!r:.40}")
    return 0


def _note_unlisted(listing: FolderListing, files: set[str], head: str, log: ProblemLog) -> None:
    """Note images that lie in the folders of listed images and are not listed."""
    for path in listing.names():
        if is_image(path) and path not in files:
            log.add("unlisted-image", head + path)
