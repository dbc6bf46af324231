"""The catalogue of data problems: kind, severity, and what training does.

One catalogue serves the readers (which skip, clip and count), the doctor (which lists) and the documentation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from siamdetr.errors import DataError

Severity = Literal[
    "error", "warning", "info"
]  # error: something is left out; warning: kept, but should be checked; info: a fact
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Kind:
    """One kind of problem: its severity, its name in plain words, and what training does with it."""

    severity: Severity
    title: str
    action: str


KINDS: dict[str, Kind] = {
    # the data set as a whole
    "unreadable-annotations": Kind("error", "annotation file cannot be read", "what it annotates is left out"),
    "bad-category": Kind("error", "category without an id or a name", "the category is left out"),
    "duplicate-category": Kind("warning", "several categories of one name", "taken as one class"),
    "ambiguous-category": Kind("error", "one category id with several names", "the id and its boxes are left out"),
    "class-count-mismatch": Kind("warning", "number of classes disagrees with their names", "the names count"),
    "category-gap": Kind("info", "category ids have gaps", "mapped to labels 0..C-1; the ids are kept with the model"),
    "empty-class": Kind("warning", "class without a single box to learn from", "kept as a class; it cannot be learnt"),
    "xyxy-as-xywh": Kind(
        "warning", "boxes look like x1 y1 x2 y2 written as x y w h", "taken as x y w h: check the writer"
    ),
    # image entries
    "bad-image-entry": Kind("error", "image entry without an id or a file name", "the image is left out"),
    "missing-image": Kind("error", "image file is missing", "the image is left out"),
    "duplicate-image-id": Kind("error", "image listed twice", "the later entry is left out"),
    "ambiguous-image": Kind("error", "image id of several files", "these images and their boxes are left out"),
    "ambiguous-file": Kind("error", "image name that fits several files", "the image is left out"),
    "foreign-image": Kind(
        "warning", "picture in a format that is not decoded", "passed over: convert it to JPEG or PNG"
    ),
    "duplicate-image-file": Kind("warning", "image file listed twice", "kept: it is seen twice as often"),
    "missing-annotation": Kind("error", "image without its annotation file", "the image is left out"),
    "no-label-file": Kind("info", "image without a label file", "taken as an image without objects"),
    "unread-labels": Kind("warning", "file that may hold labels, which no reader takes", "not used"),
    "other-labels": Kind("info", "file that may hold labels, beside those that are used", "not used"),
    "class-folders": Kind("info", "folder that may be a class", "not used: a detector needs boxes"),
    "orphan-annotation": Kind("warning", "annotation file without an image", "not used"),
    "no-objects": Kind("info", "image without a single box", "kept as an image without objects"),
    "unlisted-image": Kind("info", "image file that no annotation names", "not used with labels; good for pretraining"),
    # boxes
    "malformed-box": Kind("error", "annotation that is not a box", "the box is left out"),
    "bad-field": Kind("warning", "field of the wrong type", "taken as not given"),
    "ambiguous-box": Kind("error", "box whose image id several files have", "the box is left out"),
    "outline-box": Kind("info", "object without a box, but with its outline", "the box is the outline's bounds"),
    "many-objects": Kind(
        "info",
        "image of more than 100 objects",
        "all are trained on; AP counts 100 detections of an image (--max-detections), and a detector finds one an object query",
    ),
    "nan-box": Kind("error", "box with a coordinate that is not finite", "the box is left out"),
    "degenerate-box": Kind("error", "box without area (x1 >= x2 or y1 >= y2)", "the box is left out"),
    "outside-box": Kind("error", "box that lies outside the image", "the box is left out"),
    "not-a-fraction": Kind("error", "YOLO coordinates that are not fractions of the image", "the box is left out"),
    "unknown-category": Kind("error", "box whose category does not exist", "the box is left out"),
    "unknown-image": Kind("error", "box whose image does not exist", "the box is left out"),
    "clipped-box": Kind("warning", "box that reaches beyond the image", "clipped to the image"),
    "tiny-box": Kind("warning", "box with a side below one pixel", "kept"),
    "duplicate-box": Kind("warning", "the same box with the same class twice", "kept"),
    "duplicate-annotation-id": Kind("warning", "annotation id used twice", "both are kept: the ids are not used"),
    # image files
    "empty-file": Kind("error", "image file of zero bytes", "the image is left out"),
    "corrupt-image": Kind("error", "file that no image reader knows", "the image is left out"),
    "truncated-image": Kind(
        "error",
        "image whose data breaks off",
        "training takes the next image in its place; scoring finds nothing in it",
    ),
    "too-large-image": Kind(
        "error", "image beyond the pixel limit", "the image is left out: tile it or make it smaller"
    ),
    "huge-image": Kind("warning", "image of more than 40 million pixels", "used; it is slow to read: tile it"),
    "size-mismatch": Kind(
        "warning", "annotated size is not the file's", "the file's size counts, boxes are pixels of the file"
    ),
    "exif-size-mismatch": Kind(
        "warning",
        "annotated size is that before the EXIF rotation",
        "the upright file's size counts, boxes are pixels of the upright image",
    ),
    "exif-rotated": Kind("info", "image with an EXIF rotation", "the rotation is applied"),
    "not-rgb": Kind("info", "image that is not RGB", "converted to RGB"),
    "deep-image": Kind(
        "warning", "image of more than 8 bits a channel", "scaled to 8 bits by its own depth or range, as figures say"
    ),
    "several-frames": Kind("info", "image with several frames", "the first frame is used"),
    "wrong-extension": Kind("warning", "file name and content disagree on the format", "read by its content"),
    "leakage": Kind("warning", "the same image in two splits", "kept: scores on the later split flatter"),
    "duplicate-content": Kind("warning", "the same image content twice in a split", "kept: it is seen twice as often"),
}


@dataclass(frozen=True)
class Problem:
    """One finding.

    Args:
        kind: a key of `KINDS`.
        file: path of the file at fault, relative to the data set's root where it lies below it.
        where: line, id or number inside the file ("annotation 17", "line 3", "object 2", "image 5"), or "".
        what: the figures of this case.
        count: how many cases this line stands for; above 1 only where a list was cut.
    """

    kind: str
    file: str
    where: str = ""
    what: str = ""
    count: int = 1

    @property
    def severity(self) -> Severity:
        """Severity: "error", "warning" or "info"."""
        return KINDS[self.kind].severity

    @property
    def action(self) -> str:
        """What training does with it."""
        return KINDS[self.kind].action

    def __str__(self) -> str:
        place = f"{self.file}, {self.where}" if self.where else self.file
        detail = f" ({self.what})" if self.what else ""
        return f"{place}: {KINDS[self.kind].title}{detail}: {self.action}"


class ProblemLog:
    """Collects problems.

    Args:
        limit: cases of a kind that are kept in full; further ones are only counted, so that ten million bad boxes cost
            nothing. None keeps all.
        thorough: as for the doctor: also note facts and suspicions, and make costlier checks.
    """

    def __init__(self, limit: int | None = 1000, *, thorough: bool = False) -> None:
        self.limit = limit
        self.thorough = thorough
        self.read_files: set[str] = set()  # annotation files that a reader took
        self._problems: list[Problem] = []
        self._counts: Counter[str] = Counter()

    def add(self, kind: str, file: str, where: str = "", what: str = "") -> None:
        """Note one case of `kind` (a key of `KINDS`)."""
        assert kind in KINDS, kind
        self._counts[kind] += 1
        if self.limit is None or self._counts[kind] <= self.limit:
            self._problems.append(Problem(kind, file, where, what))

    def note_read(self, file: str) -> None:
        """Note that a reader has read an annotation file, so that it does not count as unread."""
        self.read_files.add(file)

    def problems(self) -> tuple[Problem, ...]:
        """All noted problems, in order; kinds beyond the limit end with one line that counts the rest."""
        limit = self.limit
        if limit is None:
            return tuple(self._problems)
        rest = [
            Problem(kind, "", "", f"and {count - limit} more", count - limit)
            for kind, count in self._counts.items()
            if count > limit
        ]
        return (*self._problems, *rest)


def count_by_kind(problems: Iterable[Problem]) -> dict[str, int]:
    """Kind -> number of cases, the worst severity first, then the most frequent."""
    counts: Counter[str] = Counter()
    for problem in problems:
        counts[problem.kind] += problem.count
    order = sorted(counts, key=lambda kind: (SEVERITIES.index(KINDS[kind].severity), -counts[kind], kind))
    return {kind: counts[kind] for kind in order}


def summarize(problems: Iterable[Problem]) -> str:
    """One sentence for a log, e.g. "2 x box without area (...): the box is left out".

    "" when there is nothing.
    """
    lines = [
        f"{count} x {KINDS[kind].title}: {KINDS[kind].action}"
        for kind, count in count_by_kind(problems).items()
        if KINDS[kind].severity != "info"
    ]
    return "; ".join(lines)


def refuse(problems: Iterable[Problem], source: str, shown: int = 20) -> None:
    """Refuse problems, as `strict` asks.

    Raises:
        DataError: there is an error or a warning among `problems`; the text lists the first `shown` of them.
    """
    bad = [problem for problem in problems if problem.severity != "info"]
    if not bad:
        return
    total = sum(problem.count for problem in bad)
    lines = [f"  {problem}" for problem in bad[:shown]]
    if total > shown:
        lines.append(f"  ... and {total - shown} more")
    raise DataError(
        f"{source}: {total} problems, and strict reading was asked for:\n"
        + "\n".join(lines)
        + "\nRepair them, or read without strict: then each is handled as said above."
    )
