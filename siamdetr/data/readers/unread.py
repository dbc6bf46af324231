"""Files that may hold labels but that no reader reads.

They are reported, so that data with unread labels never looks healthy.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from siamdetr.data.readers.paths import walk_files
from siamdetr.images.header import is_image

# Suffixes of label files, and the remedy.
_CONVERT = "not a layout that is read: convert it to COCO, YOLO or PASCAL VOC"
_REMEDIES = {
    ".json": "JSON without COCO's lists of images and annotations: convert it to COCO",
    ".jsonl": "Hugging Face's metadata is not read: convert it to COCO",
    ".ndjson": _CONVERT,
    ".csv": "tables are not read: convert it to COCO",
    ".tsv": "tables are not read: convert it to COCO",
    ".xml": "XML whose outermost element is not <annotation>: convert it to COCO or PASCAL VOC",
    ".parquet": "tables are not read: convert it to COCO",
    ".tfrecord": "TensorFlow's records are not read: convert them to COCO",
    ".record": "TensorFlow's records are not read: convert them to COCO",
}
# Suffixes of label files, if the name is that of an image.
_REMEDIES_BY_NAME = {
    ".txt": "YOLO's label files need data.yaml, obj.data or classes.txt with the names of the classes",
    ".mat": _CONVERT,
    ".npy": _CONVERT,
    ".npz": _CONVERT,
    ".geojson": _CONVERT,
}
_LABEL_NAMES = frozenset(
    {"gt.txt", "det.txt", "annotations.txt", "bbox.txt", "boxes.txt", "wider_face_train_bbx_gt.txt"}
)


def unread_labels(root: Path, used: Collection[str]) -> Iterator[tuple[str, str]]:
    """(path from the root, remedy) of every file below `root` that may hold labels and was not used."""
    return unread_among(walk_files(root), used)


def unread_among(paths: Iterable[str], used: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """As `unread_labels`, among the given files."""
    candidates, stems = [], set[str]()
    for path in paths:
        stem, ending = os.path.splitext(os.path.basename(path))
        if is_image(path):
            stems.add(stem)
        elif path not in used and (ending.lower() in _REMEDIES or ending.lower() in _REMEDIES_BY_NAME):
            candidates.append((path, stem, ending.lower()))
    for path, stem, ending in candidates:
        if ending in _REMEDIES:
            yield path, _REMEDIES[ending]
        elif stem in stems or os.path.basename(path).lower() in _LABEL_NAMES:
            yield path, _REMEDIES_BY_NAME[ending]
