"""Class names, images and labels of a YOLO data set.

They are described by data.yaml, by Darknet's obj.data (CVAT "YOLO 1.1"), or by classes.txt alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from siamdetr.data.readers.paths import split_name, visible_files, visible_subfolders, walk_images
from siamdetr.data.readers.yaml_text import NOT_GIVEN, Tree, read_yaml_text
from siamdetr.data.splits import ALIASES, UNDIVIDED, common_name
from siamdetr.errors import DataError

SPLIT_KEYS = ("train", "val", "valid", "test")
NAME_FILES = ("classes.txt", "obj.names", "*.names", "_darknet.labels", "labels.txt")
EXPECTED = "expected a YOLO data.yaml with `names` and at least one of `train`, `val`, `test`"
EXPECTED_DARKNET = "expected `train = LIST` and `names = FILE`, one setting a line"
_PEEK_IMAGES = 50


@dataclass(frozen=True)
class YoloData:
    """The description of a YOLO data set.

    Args:
        file: that it was read from.
        names: class id -> name, as text.
        splits: split -> folders or list files of images.
        declared_classes: `nc`; None: not given.
        keypoints: count of numbers in a row after class and box (kpt_shape); 0: rows are boxes or polygons.
    """

    file: Path
    names: dict[int, str]
    splits: dict[str, tuple[Path, ...]]
    declared_classes: int | None = None
    keypoints: int = 0


def find_yolo_file(root: Path) -> Path | None:
    """The file that describes the YOLO data set in `root`, if any.

    A YAML file, obj.data, or a list of names beside labels.
    """
    files = sorted(visible_files(root, "*.yaml", "*.yml"), key=lambda file: (file.stem != "data", file.name))
    for file in (*files, *visible_files(root, "*.data")):
        try:
            load_yolo(file)
        except DataError:
            if file.stem in ("data", "dataset", "obj"):
                return file  # the reader says what is wrong with it
        else:
            return file
    return None


def find_yolo_names(root: Path) -> Path | None:
    """The list of class names, if label files lie beside the images or in labels/.

    None: there is no such list, or no label.
    """
    places = (root, root / "labels", *visible_subfolders(root))
    found = next((file for place in places for name in NAME_FILES for file in visible_files(place, name)), None)
    if found is None:
        return None
    images = (path for _, path in zip(range(_PEEK_IMAGES), walk_images(root), strict=False))
    return found if any((root / label).is_file() for path in images for label in label_choices(path)) else None


def load_yolo(file: Path) -> YoloData:
    """Read a description.

    Raises:
        DataError: not readable, not YAML (with its line), or not a YOLO data set.
    """
    if file.suffix.lower() in (".yaml", ".yml"):
        return _load_yaml(file)
    return _load_darknet(file) if file.suffix.lower() == ".data" else _load_names_alone(file)


def label_choices(image: str) -> tuple[str, str]:
    """Label files of an image: labels/a/b.txt for images/a/b.jpg, and b.txt beside the image.

    The last folder named images is replaced.
    """
    stem = image.rpartition(".")[0] + ".txt"
    head, found, tail = f"/{stem}".rpartition("/images/")
    return (f"{head}/labels/{tail}"[1:] if found else stem), stem


def _load_yaml(file: Path) -> YoloData:
    document = read_yaml_text(file, EXPECTED)
    if not isinstance(document, dict):
        raise DataError(f"{file}: got a {type(document).__name__.replace('str', 'text')}; {EXPECTED}")
    given = {key: value for key, value in document.items() if value not in ([], {}) and not _is_nothing(value)}
    base = _base_folder(file, given.get("path"))
    splits = {key: _image_sources(given[key], base, file) for key in SPLIT_KEYS if key in given}
    if not splits:
        raise DataError(f"{file}: got the keys {sorted(document)}; {EXPECTED}")
    declared = given.get("nc")
    return YoloData(
        file,
        _class_names(document.get("names", ""), file),
        splits,
        int(declared) if isinstance(declared, str) and declared.isdecimal() else None,
        _keypoints(given.get("kpt_shape"), file),
    )


def _load_darknet(file: Path) -> YoloData:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); {EXPECTED_DARKNET}") from error
    given = {key.strip(): value.strip() for key, equals, value in (line.partition("=") for line in lines) if equals}
    splits: dict[str, tuple[Path, ...]] = {
        key: (_existing((file.parent,), given[key]),) for key in SPLIT_KEYS if given.get(key)
    }
    if not splits or not given.get("names"):
        raise DataError(f"{file}: got the settings {sorted(given)}; {EXPECTED_DARKNET}")
    declared = given.get("classes", "")
    names = _listed_names(_existing((file.parent,), given["names"]))
    return YoloData(file, names, splits, int(declared) if declared.isdecimal() else None)


def _load_names_alone(file: Path) -> YoloData:
    root = file.parent.parent if file.parent.name == "labels" or file.name == "_darknet.labels" else file.parent
    for base in (root / "images", root):
        parts = [folder for folder in visible_subfolders(base) if common_name(folder.name) in ALIASES.values()]
        if parts:
            return YoloData(file, _listed_names(file), {folder.name: (folder,) for folder in parts})
    images = root / "images"
    return YoloData(file, _listed_names(file), {UNDIVIDED: (images if images.is_dir() else root,)})


def _listed_names(file: Path) -> dict[int, str]:
    """Class names, one per line; the first is class 0."""
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); expected one class name a line") from error
    while names and not names[-1]:
        names.pop()
    if not names or not all(names):
        raise DataError(f"{file}: got {'an empty line' if names else 'no name'}; expected one class name a line")
    return dict(enumerate(names))


def _keypoints(shape: Tree | None, file: Path) -> int:
    """Count of numbers in a row after class and box, from kpt_shape [points, 2 or 3]."""
    if shape is None:
        return 0
    numbers = (
        [int(part) for part in shape if isinstance(part, str) and part.isdecimal()] if isinstance(shape, list) else []
    )
    if len(numbers) != 2 or numbers[1] not in (2, 3):
        raise DataError(f"{file}: kpt_shape is {shape}, expected [number of keypoints, 2 or 3]")
    return numbers[0] * numbers[1]


def _base_folder(file: Path, path: Tree | None) -> Path:
    """The folder that splits are relative to: `path`, relative to the file's folder.

    The file's folder itself if there is no such folder.
    """
    folder = file.parent / path if isinstance(path, str) else file.parent
    return folder if folder.is_dir() else file.parent


def _image_sources(value: Tree, base: Path, file: Path) -> tuple[Path, ...]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in values):
        raise DataError(f"{file}: a split is {value!r}, expected a path or a list of paths")
    return tuple(_existing((base, file.parent), str(item)) for item in values)


def _existing(bases: tuple[Path, ...], item: str) -> Path:
    """`item`, relative to one of the folders.

    Roboflow writes ../train/images for train/images, and paths of other machines begin with folders that do not exist
    here: leading folders are dropped until the path exists.
    """
    parts = split_name(item)
    tails = ["/".join(parts[i:]) for i in range(len(parts)) if parts[i] != ".."]
    choices = [base / text for text in (item, *tails) for base in bases]
    return next((choice for choice in choices if choice.exists()), choices[0])


def _is_nothing(value: Tree) -> bool:
    return isinstance(value, str) and value in NOT_GIVEN


def _class_names(names: Tree, file: Path) -> dict[int, str]:
    if isinstance(names, list):
        names = {str(key): name for key, name in enumerate(names)}
    fits = isinstance(names, dict) and names and all(re.fullmatch(r"\d{1,18}", key) for key in names)
    if not fits or not isinstance(names, dict):
        raise DataError(f"{file}: names is {names!r:.80}, expected a list of names or a map from class id to name")
    for key, name in names.items():
        if not isinstance(name, str) or not name:
            raise DataError(f"{file}: the name of class {key} is {name!r:.40}, expected a text")
    if len({int(key) for key in names}) < len(names):
        raise DataError(f"{file}: names has one class id twice, such as 1 and 01; expected each once")
    return {int(key): str(name) for key, name in names.items()}
