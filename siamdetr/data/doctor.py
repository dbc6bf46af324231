"""The doctor: read all that training reads, and name every problem with file, place and remedy."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from siamdetr.data.balance import imbalance, skew
from siamdetr.data.duplicates import ImageHashes, Likenesses
from siamdetr.data.index import DetectionIndex, object_counts
from siamdetr.data.near_duplicates import near_duplicates
from siamdetr.data.problems import SEVERITIES, Problem, ProblemLog, Severity, count_by_kind
from siamdetr.data.readers.recognise import Source, find_source
from siamdetr.data.readers.unread import unread_labels
from siamdetr.data.remarks import Remark
from siamdetr.data.splits import common_name, find_split, in_split_order
from siamdetr.errors import DataError
from siamdetr.images.check import DIGEST_BYTES, ImageFacts, check_images
from siamdetr.system.progress import Progress
from siamdetr.system.threads import usable_cores

SIDE_STEPS = (128, 256, 512, 1024, 2048, 4096)  # pixels, longer side of an image
COCO_DETECTIONS = 100  # of an image, that COCO's AP counts
COCO_AREAS = (32**2, 96**2)  # pixels², small | medium | large (https://cocodataset.org/#detection-eval)


@dataclass(frozen=True)
class SplitStatistics:
    """Figures of one split, without its invalid entries.

    Args:
        name: the data set's own name of the split.
        images: number of images.
        images_without_boxes: among them.
        boxes: number of boxes, crowds included.
        crowds: among them.
        difficult: among them.
        class_counts: class name -> boxes.
        box_sizes: "small", "medium", "large" by COCO's areas -> boxes.
        image_sizes: range of the longer side in pixels -> images, for files that could be read.
    """

    name: str
    images: int
    images_without_boxes: int
    boxes: int
    crowds: int
    difficult: int
    class_counts: dict[str, int]
    box_sizes: dict[str, int]
    image_sizes: dict[str, int]


@dataclass(frozen=True)
class Diagnosis:
    """The findings of the doctor; `problems` are sorted by severity, kind and file.

    `remarks` concern intact data: near-duplicates, rare classes, uneven splits.
    """

    root: str
    format: str
    splits: tuple[SplitStatistics, ...]
    problems: tuple[Problem, ...]
    remarks: tuple[Remark, ...] = ()

    def count(self, severity: Severity) -> int:
        """Number of problems of a severity."""
        return sum(problem.count for problem in self.problems if problem.severity == severity)

    @property
    def clean(self) -> bool:
        """Whether there are neither errors nor warnings; there may be facts ("info")."""
        return self.count("error") == 0 and self.count("warning") == 0

    def to_json(self) -> str:
        """The diagnosis as JSON."""
        document = {
            "root": self.root,
            "format": self.format,
            "counts": {severity: self.count(severity) for severity in SEVERITIES},
            "kinds": count_by_kind(self.problems),
            "splits": [asdict(split) for split in self.splits],
            "problems": [
                {**asdict(problem), "severity": problem.severity, "action": problem.action} for problem in self.problems
            ],
            "remarks": [asdict(remark) for remark in self.remarks],
        }
        return json.dumps(document, indent=2)


def diagnose(
    path: str | Path,
    *,
    format: str = "auto",
    splits: Sequence[str] | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Diagnosis:
    """Read all annotations and every byte of every image.

    Args:
        path: as for `open_dataset`.
        format: as for `open_dataset`.
        splits: names of the splits to check; None = all (without a union such as VOC's trainval).
        progress: called with (images checked, all images).
        workers: threads that read images; None = one per processor core.
    Raises:
        DataError: `path` does not exist, `format` is unknown, or a split that was asked for does not exist.
    """
    try:
        source = find_source(path, format)
    except DataError as error:
        if not Path(path).exists() or format != "auto":
            raise
        return Diagnosis(str(path), "unknown", (), (Problem("unreadable-annotations", str(path), "", str(error)),))
    names = _choose_splits(source, splits, str(path))
    log = ProblemLog(limit=None, thorough=True)
    parts: dict[str, DetectionIndex] = {}
    for name in names:
        try:
            parts[name] = source.splits[name](log, None)
        except (DataError, OSError) as error:
            log.add("unreadable-annotations", str(source.root), f"split '{name}'", str(error))
    _note_empty_classes(parts, log)
    _note_many_objects(parts, log)
    if source.format != "folder":
        _note_unread(source.root, parts, log)
    sides, digests, hashes = _check_files(parts, log, progress, workers or usable_cores())
    remarks = [*imbalance(parts), *skew(parts), *near_duplicates(digests, hashes, parts)]
    return Diagnosis(
        root=str(path),
        format=source.format,
        splits=tuple(_statistics(name, part, sides[name]) for name, part in parts.items()),
        problems=_in_order(_without_false_orphans(log.problems(), parts)),
        remarks=tuple(remarks),
    )


def _choose_splits(source: Source, wanted: Sequence[str] | None, name: str) -> list[str]:
    if wanted is not None:
        return [find_split(split, list(source.splits), name) for split in wanted]
    commons = {common_name(split) for split in source.splits}
    is_divided = {"train", "val"} <= commons
    names = [split for split in source.splits if not (is_divided and common_name(split) == "trainval")]
    return sorted(names, key=in_split_order)


def _note_empty_classes(parts: dict[str, DetectionIndex], log: ProblemLog) -> None:
    """Note classes without a box in the training split, or in all splits if none is for training."""
    training = [name for name in parts if common_name(name) == "train"] or list(parts)
    counts: Counter[str] = Counter()
    for name in training:
        part = parts[name]
        counts.update(dict.fromkeys(part.class_names, 0))
        counts.update(dict(zip(part.class_names, part.class_counts().tolist(), strict=True)))
    for class_name, count in counts.items():
        if count == 0:
            log.add("empty-class", f"split '{training[0]}'", f"class '{class_name}'")


def _note_many_objects(parts: dict[str, DetectionIndex], log: ProblemLog) -> None:
    """Note images with more objects (without crowds) than COCO's AP counts detections."""
    for part in parts.values():
        objects = object_counts(part)
        for i in np.flatnonzero(objects > COCO_DETECTIONS):
            log.add("many-objects", part.relative_path(int(i)), f"image {part.own_id(int(i))}", f"{objects[i]} objects")


def _note_unread(root: Path, parts: dict[str, DetectionIndex], log: ProblemLog) -> None:
    """Note unread files that may hold labels: a fact if there are boxes, else the likely cause."""
    kind = "other-labels" if any(part.num_boxes for part in parts.values()) else "unread-labels"
    orphans = {problem.file for problem in log.problems() if problem.kind == "orphan-annotation"}
    for path, remedy in unread_labels(root, log.read_files | orphans):
        log.add(kind, path, "", remedy)


def _check_files(
    parts: dict[str, DetectionIndex], log: ProblemLog, progress: Progress | None, workers: int
) -> tuple[dict[str, list[int]], NDArray[np.uint64], ImageHashes]:
    """Open every image once per split.

    Returns the longer side in pixels of each readable image, by split; uint64 [N, 2] digests of all files; what they
    are compared by.
    """
    total = sum(len(part) for part in parts.values())
    digests, likenesses = bytearray(), Likenesses()
    sides: dict[str, list[int]] = {}
    for name, part in parts.items():
        sides[name] = []
        for i, facts in enumerate(check_images([part.path(i) for i in range(len(part))], workers)):
            _note_findings(facts, part, i, log)
            digests += facts.digest.ljust(DIGEST_BYTES, b"\0")
            likenesses.add(facts.likeness)
            if facts.size[0]:
                sides[name].append(max(facts.size))
            if progress is not None:
                progress(len(likenesses), total)
    contents = np.frombuffer(bytes(digests), dtype="<u8").reshape(-1, 2)
    _note_same_content(contents, parts, log)
    return sides, contents, likenesses.hashes()


def _note_findings(facts: ImageFacts, part: DetectionIndex, i: int, log: ProblemLog) -> None:
    file, where = part.relative_path(i), f"image {part.own_id(i)}"
    for kind, figures in facts.findings:
        log.add(kind, file, where, figures)


def _note_same_content(digests: NDArray[np.uint64], parts: dict[str, DetectionIndex], log: ProblemLog) -> None:
    """Note files whose content came earlier: a leak from another split, a repetition in the same.

    Args:
        digests: uint64 [N, 2], images of all splits one after the other; zeros = could not be read.
        parts: the splits.
        log: of the findings.
    """
    places = [(name, i) for name, part in parts.items() for i in range(len(part))]
    _, inverse, counts = np.unique(digests, axis=0, return_inverse=True, return_counts=True)
    groups: dict[int, list[tuple[str, int]]] = {}
    for row in np.flatnonzero((counts[inverse.reshape(-1)] > 1) & digests.any(axis=1)):
        groups.setdefault(int(inverse.reshape(-1)[row]), []).append(places[row])
    for group in groups.values():
        for number, (name, i) in enumerate(group[1:], start=1):
            earlier = next((place for place in group[:number] if place[0] != name), group[0])
            other, j = earlier
            kind = "duplicate-content" if other == name else "leakage"
            what = f"same content as {parts[other].relative_path(j)}"
            what += "" if other == name else f" of split '{other}', this one is in '{name}'"
            log.add(kind, parts[name].relative_path(i), f"image {parts[name].own_id(i)}", what)


def _without_false_orphans(problems: Iterable[Problem], parts: dict[str, DetectionIndex]) -> list[Problem]:
    """Problems without the orphans that another split uses, because splits may share folders."""
    problems = list(dict.fromkeys(problems))  # splits that share an annotation folder report it once
    if not any(problem.kind in ("unlisted-image", "orphan-annotation") for problem in problems):
        return problems
    used = {part.relative_path(i) for part in parts.values() for i in range(len(part))}
    stems = {_label_stem(path) for path in used}
    return [
        problem
        for problem in problems
        if not (problem.kind == "unlisted-image" and problem.file in used)
        and not (problem.kind == "orphan-annotation" and _label_stem(problem.file) in stems)
    ]


def _label_stem(path: str) -> str:
    """The common name of an image and its label file: the path without suffix, images/ as labels/."""
    head, found, tail = f"/{path}".rpartition("/images/")
    stem = f"{head}/labels/{tail}" if found else f"/{path}"
    return stem.rsplit(".", 1)[0]


def _in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    return tuple(sorted(problems, key=lambda item: (SEVERITIES.index(item.severity), item.kind, item.file)))


def _statistics(name: str, part: DetectionIndex, sides: list[int]) -> SplitStatistics:
    small, medium = (int((part.areas < limit).sum()) for limit in COCO_AREAS)
    bins = np.bincount(np.searchsorted(SIDE_STEPS, sides, side="right"), minlength=len(SIDE_STEPS) + 1)
    ranges = [f"{low}-{high}" for low, high in zip((0, *SIDE_STEPS), SIDE_STEPS, strict=False)]
    return SplitStatistics(
        name=name,
        images=len(part),
        images_without_boxes=int((part.box_counts() == 0).sum()),
        boxes=part.num_boxes,
        crowds=int(part.crowd.sum()),
        difficult=int(part.difficult.sum()),
        class_counts=dict(zip(part.class_names, part.class_counts().tolist(), strict=True)),
        box_sizes={"small": small, "medium": medium - small, "large": part.num_boxes - medium},
        image_sizes={
            text: int(count) for text, count in zip((*ranges, f"{SIDE_STEPS[-1]}-"), bins, strict=True) if count
        },
    )
