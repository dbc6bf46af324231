"""PASCAL VOC XML (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf).

Coordinates count pixels from 1, both ends included: (1, 1, W, H) is the whole image. The left edge of pixel 1 is 0, so
xyxy = (xmin - 1, ymin - 1, xmax, ymax). Boxes refer to the upright file, whose own size is used.
Ours: a box with xmin = xmax, strictly one pixel wide, counts as a box without area, because it is usually a slip of the
mouse.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from siamdetr.data.builder import IndexBuilder
from siamdetr.data.index import DetectionIndex
from siamdetr.data.problems import ProblemLog
from siamdetr.data.readers.fields import as_flag
from siamdetr.data.readers.paths import relative, split_name, walk_files
from siamdetr.data.readers.sizes import HeaderReader, note_mismatch, usable_size
from siamdetr.data.readers.voc_layout import VocFolder, annotation_files
from siamdetr.errors import DataError
from siamdetr.images.header import Header, is_foreign_image, is_image
from siamdetr.system.progress import Progress

LABEL_FILES = ("labels.txt", "classes.txt")
_AT_A_TIME = 1000  # parsed XML files in memory
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Annotated:
    """One parsed XML file and its image, both relative to the root."""

    source: str
    image: str
    tree: ElementTree.Element


def read_voc(
    split: VocFolder,
    *,
    root: Path,
    log: ProblemLog,
    class_names: tuple[str, ...],
    progress: Progress | None = None,
) -> DetectionIndex:
    """Read one split.

    Args:
        split: one value of `find_voc_splits`.
        root: folder that the index's paths start from.
        log: of what is left out.
        class_names: in label order, see `voc_class_names`.
        progress: called with (annotation files read, all of them).
    Raises:
        DataError: the list of the split cannot be read.
    """
    labels = {name: label for label, name in enumerate(class_names)}
    builder = IndexBuilder(root, log)
    images = ImageNames(split.images)
    sources: list[str] = []  # annotation file of each image
    files = list(_files(split, root, log))
    with HeaderReader(root, len(files)) as reader:
        for start in range(0, len(files), _AT_A_TIME):
            found = list(_parse(files[start : start + _AT_A_TIME], split, images, root, log))
            for entry, header in zip(found, reader.read([entry.image for entry in found]), strict=True):
                if _add_image(builder, entry, header, labels):
                    sources.append(entry.source)
            if progress is not None:
                progress(min(start + _AT_A_TIME, len(files)), len(files))
    for name in images.foreign:
        log.add("foreign-image", relative(split.images / name, root))
    if log.thorough:
        _note_unlisted(images, split, root, log)
    ids = tuple(range(1, len(class_names) + 1))
    return builder.build(class_names, ids, lambda image, reference: (sources[image], f"object {reference}"))


def voc_class_names(root: Path, folders: Iterable[Path]) -> tuple[str, ...]:
    """Class names: the lines of labels.txt or classes.txt in `root`.

    Without such a file, every name in an XML file below `folders`, sorted.
    """
    for file in (root / name for name in LABEL_FILES):
        if file.is_file():
            lines = (line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines())
            return tuple(dict.fromkeys(line for line in lines if line))
    names: set[str] = set()
    for folder in dict.fromkeys(folders):
        for path in annotation_files(folder):
            try:
                tree = ElementTree.parse(folder / path).getroot()
                names.update(_text(item, "name") for item in tree.iterfind("object"))
            except (ElementTree.ParseError, OSError, ValueError, LookupError):
                continue  # noted with its line by the split that reads it
    return tuple(sorted(names - {""}))


class ImageNames:
    """The images below a folder, by their path without suffix or by a name in an XML file."""

    def __init__(self, folder: Path) -> None:
        paths = list(walk_files(folder))
        self.paths = [path for path in paths if is_image(path)]
        self.foreign = [path for path in paths if is_foreign_image(path)]
        self._known = frozenset(self.paths)
        self._by_stem: dict[str, list[str]] = {}
        self._by_name: dict[str, list[str]] = {}
        for path in self.paths:
            self._by_stem.setdefault(os.path.splitext(path)[0], []).append(path)
            self._by_name.setdefault(os.path.basename(path).casefold(), []).append(path)

    def of(self, stem: str, tree: ElementTree.Element) -> list[str]:
        """The images that an XML file may mean; exactly one if it is clear.

        Args:
            stem: path of the XML file without suffix, relative to the folder of annotations.
            tree: its content; <filename> decides between several images of this stem, and is used if there is none.
        """
        parts = split_name(_text(tree, "filename"))
        named = ["/".join(parts[i:]) for i in range(len(parts))]
        if os.path.dirname(stem) and parts:
            named.insert(0, f"{os.path.dirname(stem)}/{parts[-1]}")
        there = [path for path in named if path in self._known]
        same = self._by_stem.get(stem, [])
        if same:
            return [path for path in same if path in there] if len(same) > 1 and set(same) & set(there) else same
        return there[:1] or self._by_name.get(parts[-1].casefold() if parts else "", [])


def _parse(files: list[str], split: VocFolder, images: ImageNames, root: Path, log: ProblemLog) -> Iterator[_Annotated]:
    """The readable XML files whose image exists, in order."""
    for path in files:
        file = split.annotations / path
        tree = _read_tree(file, root, log)
        if tree is None:
            continue
        source, stem = relative(file, root), path[:-4]
        log.note_read(source)
        fitting = images.of(stem, tree)
        if len(fitting) == 1:
            yield _Annotated(source, relative(split.images / fitting[0], root), tree)
        elif fitting:
            log.add("ambiguous-file", source, "", f"fits {', '.join(fitting[:3])}")
        else:
            log.add("missing-image", relative(split.images / f"{stem}.jpg", root), "", f"named by {file.name}")


def _add_image(builder: IndexBuilder, entry: _Annotated, header: Header, labels: dict[str, int]) -> bool:
    """Add one image with its objects, numbered from 1 in the order of the file.

    Returns False if it cannot be opened.
    """
    log, where = builder.log, f"image {len(builder) + 1}"
    size = usable_size(header, entry.image, where, log)
    if size is None:
        return False
    note_mismatch(_annotated_size(entry, log), header, entry.image, where, log)
    image = builder.add_image(entry.image, height=size[0], width=size[1])
    for number, item in enumerate(entry.tree.iterfind("object"), start=1):
        _add_object(builder, image, item, labels, entry.source, number)
    return True


def _annotated_size(entry: _Annotated, log: ProblemLog) -> tuple[int, int]:
    """The (height, width) in the XML file; (0, 0): none, or an invalid one, which is noted."""
    sides = []
    for name in ("height", "width"):
        side = _number(entry.tree, f"size/{name}")
        text = _text(entry.tree, f"size/{name}")
        if text and (side is None or not 0 <= side < 2**31):
            log.add("bad-field", entry.source, f"size/{name}", f"'{text:.40}'")
        sides.append(round(side) if side is not None and 0 <= side < 2**31 else 0)
    return sides[0], sides[1]


def _add_object(
    builder: IndexBuilder, image: int, item: ElementTree.Element, labels: dict[str, int], source: str, number: int
) -> None:
    name, where = _text(item, "name"), f"object {number}"
    if name not in labels:
        builder.log.add("unknown-category", source, where, f"name '{name}'")
        return
    corners = [_number(item, f"bndbox/{corner}") for corner in CORNERS]
    if any(corner is None for corner in corners):
        texts = ", ".join(f"{corner} '{_text(item, f'bndbox/{corner}')}'" for corner in CORNERS)
        rotated = ", with a rotated box (robndbox)" if item.find("robndbox") is not None else ""
        builder.log.add("malformed-box", source, where, texts + rotated)
        return
    difficult = as_flag(_text(item, "difficult"))
    if difficult is None:
        builder.log.add("bad-field", source, where, f"difficult '{_text(item, 'difficult'):.40}'")
    x1, y1, x2, y2 = (corner for corner in corners if corner is not None)
    has_area = x1 < x2 and y1 < y2
    box = (x1 - 1, y1 - 1, x2, y2) if has_area else (x1, y1, x2, y2)
    builder.add_box(image, labels[name], box, difficult=bool(difficult), reference=number)


def _files(split: VocFolder, root: Path, log: ProblemLog) -> Iterator[str]:
    """The split's XML files, relative to the folder of annotations, each once."""
    there = list(annotation_files(split.annotations))
    if split.listing is None:
        yield from there
        return
    try:
        lines = split.listing.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{split.listing}: cannot be read ({error}); expected one image name a line") from error
    known, seen = {path[:-4]: path for path in there}, set[str]()
    for number, line in enumerate(lines, start=1):
        stem = _listed_stem(line, known)
        if stem in seen:
            log.add("duplicate-image-id", relative(split.listing, root), f"line {number}", stem)
        elif stem:
            seen.add(stem)
            yield known.get(stem, f"{stem}.xml")


def _listed_stem(line: str, known: Mapping[str, str]) -> str:
    """The image that a line of a list names.

    Its name may have spaces, a suffix, or folders in front; lists of a class have "name 1".
    """
    words = line.split()
    if not words:
        return ""
    choices = [line.strip(), words[0]]
    for text in (line.strip(), words[0]):
        parts = split_name(text)
        tails = ["/".join(parts[i:]) for i in range(len(parts))]
        choices += [*tails, *(os.path.splitext(tail)[0] for tail in tails)]
    return next((choice for choice in choices if choice in known), words[0])


def _read_tree(file: Path, root: Path, log: ProblemLog) -> ElementTree.Element | None:
    name = relative(file, root)
    try:
        return ElementTree.parse(file).getroot()
    except FileNotFoundError:
        log.add("missing-annotation", name)
    except ElementTree.ParseError as error:
        line, column = error.position
        log.add("unreadable-annotations", name, f"line {line}, column {column + 1}", str(error).split(":")[0])
    except (OSError, ValueError, LookupError) as error:  # an unknown encoding is a LookupError
        log.add("unreadable-annotations", name, "", str(error))
    return None


def _note_unlisted(images: ImageNames, split: VocFolder, root: Path, log: ProblemLog) -> None:
    """Note images that have no XML file in any split."""
    annotated = {path[:-4] for path in annotation_files(split.annotations)}
    for path in sorted(images.paths):
        if os.path.splitext(path)[0] not in annotated:
            log.add("unlisted-image", relative(split.images / path, root))


def _text(item: ElementTree.Element, path: str) -> str:
    return (item.findtext(path) or "").strip()


def _number(item: ElementTree.Element, path: str) -> float | None:
    try:
        return float(_text(item, path))
    except ValueError:
        return None
