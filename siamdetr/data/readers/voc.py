"""PASCAL VOC XML (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf).

Coordinates count pixels from 1, both ends included: (1, 1, W, H) is the whole image. The left edge of pixel 1 lies at 0,
so xyxy = (xmin - 1, ymin - 1, xmax, ymax). Ours: xmin = xmax, by the letter one pixel wide, counts as a box without area,
because in practice it is a slip of the mouse.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from siamdetr.data.builder import IndexBuilder
from siamdetr.data.index import DetectionIndex
from siamdetr.data.problems import ProblemLog
from siamdetr.data.readers.paths import relative
from siamdetr.data.splits import ALIASES, UNDIVIDED
from siamdetr.errors import DataError
from siamdetr.images.header import is_image, read_size
from siamdetr.system.progress import Progress

LABEL_FILES = ("labels.txt", "classes.txt")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocFolder:
    """Where a split lives: the folder of XML files, that of images, and the file that lists the split (None: all XML)."""

    annotations: Path
    images: Path
    listing: Path | None


def find_voc_splits(root: Path) -> dict[str, VocFolder]:
    """Split name -> folders: ImageSets/Main/*.txt, or XML beside images in `root` or in its subfolders (Roboflow)."""
    annotations = root / "Annotations"
    if annotations.is_dir():
        images = next((root / name for name in ("JPEGImages", "images") if (root / name).is_dir()), root)
        listings = sorted((root / "ImageSets" / "Main").glob("*.txt"))
        named = {file.stem: VocFolder(annotations, images, file) for file in listings if not _is_class_list(file.stem)}
        return named or {UNDIVIDED: VocFolder(annotations, images, None)}
    if _has_annotations(root):
        return {UNDIVIDED: VocFolder(root, root, None)}
    subfolders = [root / name for name in sorted(os.listdir(root)) if (root / name).is_dir()] if root.is_dir() else []
    return {folder.name: VocFolder(folder, folder, None) for folder in subfolders if _has_annotations(folder)}


def read_voc(
    split: VocFolder,
    *,
    root: Path,
    log: ProblemLog,
    class_names: tuple[str, ...] | None = None,
    progress: Progress | None = None,
) -> DetectionIndex:
    """Reads one split.

    Args:
        split: one value of `find_voc_splits`.
        root: folder that the index's paths start from.
        log: notes what is left out.
        class_names: in label order; None = `voc_class_names(root)`.
        progress: called with (annotation files read, all of them).
    Raises:
        DataError: the list of the split cannot be read.
    """
    names = voc_class_names(root) if class_names is None else class_names
    labels = {name: label for label, name in enumerate(names)}
    builder = IndexBuilder(root, log)
    images = {
        os.path.splitext(name)[0]: name for name in sorted(_names_in(split.images), reverse=True) if is_image(name)
    }
    sources: list[str] = []  # annotation file of each image
    stems = list(_stems(split, root, log))
    for number, stem in enumerate(stems):
        file = split.annotations / f"{stem}.xml"
        tree = _read_tree(file, root, log)
        if tree is not None:
            image = images.get(stem) or _named_image(tree, split.images)
            if image is None:
                log.add("missing-image", relative(split.images / f"{stem}.jpg", root), "", f"named by {file.name}")
            else:
                sources.append(relative(file, root))
                _add_image(builder, tree, split.images / image, labels, sources[-1])
        if progress is not None:
            progress(number + 1, len(stems))
    if log.thorough:
        _note_unlisted(images, split, root, log)
    return builder.build(
        names, tuple(range(1, len(names) + 1)), lambda image, reference: (sources[image], f"object {reference}")
    )


def voc_class_names(root: Path) -> tuple[str, ...]:
    """Lines of labels.txt or classes.txt in `root`; without them every name in any split's XML, sorted."""
    for file in (root / name for name in LABEL_FILES):
        if file.is_file():
            lines = (line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines())
            return tuple(dict.fromkeys(line for line in lines if line))
    names: set[str] = set()
    for folder in dict.fromkeys(split.annotations for split in find_voc_splits(root).values()):
        for file in folder.glob("*.xml"):
            try:
                names.update(_text(item, "name") for item in ElementTree.parse(file).getroot().iterfind("object"))
            except (ElementTree.ParseError, OSError, ValueError, LookupError):
                continue  # noted with its line by the split that reads it
    return tuple(sorted(names - {""}))


def _add_image(
    builder: IndexBuilder, tree: ElementTree.Element, file: Path, labels: dict[str, int], source: str
) -> None:
    """Adds one image with its objects, numbered from 1 in the order of the file."""
    height, width = (_number(tree, f"size/{name}") or 0 for name in ("height", "width"))
    if not (1 <= height < 2**31 and 1 <= width < 2**31):
        height, width = read_size(file) or (0, 0)
    image = builder.add_image(relative(file, builder.root), height=int(height), width=int(width))
    for number, item in enumerate(tree.iterfind("object"), start=1):
        name, where = _text(item, "name"), f"object {number}"
        if name not in labels:
            builder.log.add("unknown-category", source, where, f"name '{name}'")
            continue
        corners = [_number(item, f"bndbox/{corner}") for corner in CORNERS]
        if any(corner is None for corner in corners):
            texts = ", ".join(f"{corner} '{_text(item, f'bndbox/{corner}')}'" for corner in CORNERS)
            builder.log.add("malformed-box", source, where, texts)
            continue
        x1, y1, x2, y2 = (corner for corner in corners if corner is not None)
        has_area = x1 < x2 and y1 < y2
        box = (x1 - 1, y1 - 1, x2, y2) if has_area else (x1, y1, x2, y2)
        difficult = _text(item, "difficult") == "1"
        builder.add_box(image, labels[name], box, difficult=difficult, reference=number)


def _stems(split: VocFolder, root: Path, log: ProblemLog) -> Iterator[str]:
    """Names of the split's images without ending, each once."""
    if split.listing is None:
        yield from sorted(name[:-4] for name in _names_in(split.annotations) if name.endswith(".xml"))
        return
    try:
        lines = split.listing.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{split.listing}: cannot be read ({error}); expected one image name a line") from error
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        stem = line.split()[0] if line.split() else ""
        if stem in seen:
            log.add("duplicate-image-id", relative(split.listing, root), f"line {number}", stem)
        elif stem:
            seen.add(stem)
            yield stem


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


def _note_unlisted(images: dict[str, str], split: VocFolder, root: Path, log: ProblemLog) -> None:
    """Images without an XML file, whatever the split."""
    annotated = {os.path.splitext(name)[0] for name in _names_in(split.annotations) if name.endswith(".xml")}
    for stem, name in sorted(images.items()):
        if stem not in annotated:
            log.add("unlisted-image", relative(split.images / name, root))


def _named_image(tree: ElementTree.Element, folder: Path) -> str | None:
    """The file that <filename> names, when it is there."""
    name = os.path.basename(_text(tree, "filename").replace("\\", "/"))
    return name if name and (folder / name).is_file() else None


def _text(item: ElementTree.Element, path: str) -> str:
    return (item.findtext(path) or "").strip()


def _number(item: ElementTree.Element, path: str) -> float | None:
    try:
        return float(_text(item, path))
    except ValueError:
        return None


def _is_class_list(stem: str) -> bool:
    """VOC also lists the images of each class of each split, as in "aeroplane_train"."""
    return "_" in stem and stem.rsplit("_", 1)[1] in ALIASES


def _has_annotations(folder: Path) -> bool:
    """Whether an XML file with VOC's outermost element lies directly in `folder`.

    One that cannot be parsed counts.
    """
    first = next(iter(sorted(folder.glob("*.xml"))), None)
    if first is None:
        return False
    with first.open("rb") as stream:
        return b"<annotation" in stream.read(4096)


def _names_in(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []
