"""Compute the region proposals of a data set once, on all cores or a cluster. It can be resumed.

`methods.py` computes the proposals of an image, `store.py` and `writing.py` read and write the file.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import DataError, UnreadableImageError
from siamdetr.images import opencv as cv2
from siamdetr.images.open import content_key, open_untrusted, read_bytes
from siamdetr.proposals.methods import CENTRED, Boxes, Recipe, propose
from siamdetr.proposals.opencv_contrib import require_contrib
from siamdetr.proposals.rows import Rows, StoredImage, concatenate_rows
from siamdetr.proposals.store import ProposalStore
from siamdetr.proposals.writing import file_stamp, read_known, write_part, write_store
from siamdetr.system.file_lock import only_writer
from siamdetr.system.parallel import TaskRunner
from siamdetr.system.progress import Progress

__all__ = ["ProposalStore", "compute_proposals", "open_proposals", "propose"]

logger = logging.getLogger(__name__)

_CHUNK = 8  # images per task
# The most images that are compared with a given store by content, since comparing reads them.
_CHECKED = 20_000


@dataclass(frozen=True)
class _Chunk:
    """Some images for one process: paths, stamps, rows that are known already, given boxes."""

    paths: tuple[Path, ...]
    stamps: tuple[bytes, ...]
    recipe: Recipe
    known: ProposalStore
    given: tuple[Boxes, ...] | None  # pixels; objectness-file


@dataclass(frozen=True)
class _Computed:
    rows: Rows
    problems: tuple[str, ...]
    num_images: int


def compute_proposals(
    index: DetectionIndex,
    store_path: str | Path,
    *,
    recipe: Recipe | None = None,
    engine: TaskRunner | None = None,
    given: Mapping[int, Boxes] | None = None,
    part_size: int = 512,
    progress: Progress | None = None,
) -> ProposalStore:
    """Compute the proposals of every image that the file lacks.

    Results are saved after every `part_size` images, so that an interrupted run continues there.

    Args:
        index: the images; those that cannot be read are left out, with a warning.
        store_path: the file, created if needed. While another program writes it, this one waits.
        recipe: None: EdgeBoxes.
        engine: None: one thread per core, since OpenCV, Pillow and hashing release Python's lock.
        given: for "objectness-file": image id to [n, 4] xyxy pixels, best first; images without any get the centred
            box.
        part_size: images between two saves.
        progress: called with (images done, images in all).
    Raises:
        DataError: the file exists and is not a file of proposals, it cannot be written, no image can be read, or the
            edge model cannot be read.
    """
    path, recipe = Path(store_path), recipe or Recipe()
    if recipe.method not in ("random", "objectness-file"):
        require_contrib()
    tell = progress or (lambda done, total: None)
    with only_writer(path, lambda: tell(0, len(index))):
        _complete(index, path, recipe, engine or TaskRunner(), given, part_size=part_size, tell=tell)
    return ProposalStore.open(path)


def _complete(
    index: DetectionIndex,
    path: Path,
    recipe: Recipe,
    engine: TaskRunner,
    given: Mapping[int, Boxes] | None,
    *,
    part_size: int,
    tell: Progress,
) -> None:
    """Compute and write the missing rows."""
    known = read_known(path, text := recipe.text)
    stamps = [file_stamp(index.path(i)) for i in range(len(index))]
    have = frozenset().union(*(store.stamps() for store in known))
    wanted = [i for i in range(len(index)) if stamps[i] not in have]
    done, total = len(index) - len(wanted), len(index)
    if done:
        tell(done, total)
    started = time.perf_counter()
    problems: list[str] = []
    fresh: list[Rows] = []
    written: list[Path] = []

    def put_on_disk() -> None:
        if any(map(len, fresh)):
            written.append(write_part(path, text, concatenate_rows(fresh)))
        fresh.clear()

    try:
        chunks = _chunks(index, wanted, stamps, recipe, known, given, size=min(_CHUNK, part_size))
        for computed in engine.run(_compute, chunks):
            fresh.append(computed.rows)
            problems += computed.problems
            done += computed.num_images
            if sum(map(len, fresh)) >= part_size:
                put_on_disk()
            tell(done, total)
    finally:
        put_on_disk()
    _warn_of(problems, index)
    if len(problems) == total > 0:
        raise DataError(f"{index.root}: none of {total:,} images can be read; `siamdetr doctor {index.root}` says why")
    if wanted:
        rate = len(wanted) / (time.perf_counter() - started)
        logger.info(
            "Proposals: %d images known, %d computed, %.1f images/s (%s)", total - len(wanted), len(wanted), rate, text
        )
    if written or len(known) != 1 or known[0].paths != (path,):
        everything = [*known, *map(ProposalStore.open, written)]
        write_store(path, text, concatenate_rows([store.rows() for store in everything]))


def open_proposals(
    index: DetectionIndex, paths: Sequence[str | Path], *, progress: Progress | None = None
) -> ProposalStore:
    """Open computed proposals, or their shards, for a data set.

    A warning counts the images that they lack.

    Images are compared by content, whatever their path; those whose path, size and time are in the store need not be
    read.

    Args:
        index: the images.
        paths: files of proposals.
        progress: called with (images compared, images to compare).
    Raises:
        DataError: a file is not a file of proposals or is damaged, or the store has none of the images.
    """
    store = ProposalStore.open(*paths).verify()
    names = ", ".join(map(str, paths))
    known = store.stamps()
    unknown = [i for i in range(len(index)) if file_stamp(index.path(i)) not in known]
    checked = unknown[:: -(-len(unknown) // _CHECKED) or 1]
    tasks = [(tuple(index.path(i) for i in part), store) for part in _parts_of(checked, 64)]
    missing, done = 0, 0
    for count, lacking in TaskRunner().run(_count_missing, tasks):
        missing, done = missing + lacking, done + count
        if progress is not None:
            progress(done, len(checked))
    if missing == len(index) > 0:
        raise DataError(
            f"{names}: has proposals of {len(store):,} images, and none of the {len(index):,} images of {index.root}: it was made for "
            f"other images. `siamdetr proposals {index.root} -o FILE` makes it for these; without --proposals, training does"
        )
    if missing:
        of = f"of {len(checked):,} compared " if len(checked) < len(unknown) else ""
        logger.warning(
            "%s: %s images %sare missing (of %s in %s); each gets EdgeBoxes whenever it is read, which costs time. "
            "`siamdetr proposals %s -o FILE` computes them once",
            names, f"{missing:,}", of, f"{len(index):,}", index.root, index.root,
        )  # fmt: skip
    logger.info("Proposals: %s images, %s", f"{len(store):,}", store.recipe)
    return store


def _compute(chunk: _Chunk) -> _Computed:
    cv2.setNumThreads(0)  # the cores share the images, not the work on one image
    rows, problems = [], []
    for i, (path, stamp) in enumerate(zip(chunk.paths, chunk.stamps, strict=True)):
        try:
            rows.append(_compute_one(path, stamp, chunk, None if chunk.given is None else chunk.given[i]))
        except UnreadableImageError as error:
            problems.append(str(error))
    return _Computed(Rows.of(rows), tuple(problems), len(chunk.paths))


def _compute_one(path: Path, stamp: bytes, chunk: _Chunk, given: Boxes | None) -> StoredImage:
    data = read_bytes(path)
    key = content_key(data)
    earlier = chunk.known.find(key)
    if earlier is not None:
        return StoredImage(stamp, key, earlier.size, earlier.boxes, earlier.fallback)
    image = open_untrusted(data, name=path)
    size = (image.height, image.width)
    if given is not None:
        boxes = np.asarray(given[: chunk.recipe.keep] / np.asarray([image.width, image.height] * 2), dtype=np.float32)
        if len(boxes):
            return StoredImage.of(stamp, key, size, boxes)
        return StoredImage.of(stamp, key, size, np.asarray([CENTRED], dtype=np.float32), 2)
    found = propose(image, chunk.recipe, seed=int.from_bytes(key[:8], "big"))
    return StoredImage.of(stamp, key, size, found.boxes, found.fallback)


def _count_missing(task: tuple[tuple[Path, ...], ProposalStore]) -> tuple[int, int]:
    """The number of compared images, and of those missing in the store; training reports unreadable ones."""
    paths, store = task
    missing = 0
    for path in paths:
        try:
            missing += store.find(content_key(read_bytes(path))) is None
        except UnreadableImageError:
            continue
    return len(paths), missing


def _chunks(
    index: DetectionIndex,
    wanted: list[int],
    stamps: list[bytes],
    recipe: Recipe,
    known: list[ProposalStore],
    given: Mapping[int, Boxes] | None,
    *,
    size: int,
) -> Iterator[_Chunk]:
    store = ProposalStore.open(*(path for part in known for path in part.paths))
    nothing = np.zeros((0, 4), dtype=np.float32)
    for part in _parts_of(wanted, size):
        boxes = None if given is None else tuple(given.get(int(index.image_ids[i]), nothing) for i in part)
        yield _Chunk(tuple(index.path(i) for i in part), tuple(stamps[i] for i in part), recipe, store, boxes)


def _parts_of(items: list[int], size: int) -> Iterator[list[int]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _warn_of(problems: list[str], index: DetectionIndex) -> None:
    for problem in problems:
        logger.warning("%s; it gets no proposals", problem)
    if problems:
        logger.warning(
            "%d images could not be read and have no proposals; `siamdetr doctor %s` lists them",
            len(problems),
            index.root,
        )
