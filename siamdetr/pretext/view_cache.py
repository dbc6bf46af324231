"""Frozen features of fixed view pairs, kept on disk: a step then costs the transformer alone.

Neither the backbone of pretraining nor the K pairs of views per image change: their feature maps and the features of
their crops are computed once, stored in one memory-mapped file, and read instead of images.
Ours; the official code draws new views at every read. A small K is faster and has less variety.
Features are those of each pair alone, without the padding of a batch, and padded with zeros.

A folder holds `features.i8`, `tables.npz` (shapes, boxes, sizes) and, written last, `cache.json`: the sources of the
features.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from siamdetr.errors import CheckpointError, DataError
from siamdetr.images.preprocessing import Normalization
from siamdetr.model_file import digest
from siamdetr.models.backbone.pyramid import as_levels
from siamdetr.pretext.cached_views import FEATURES, TABLES, CachedPair, CachedViews, as_bytes
from siamdetr.pretext.common import FrozenTeacher
from siamdetr.pretext.datasets import SiameseDataset, collate_views
from siamdetr.settings.base import to_json
from siamdetr.system.atomic_file import atomic_bytes, atomic_write
from siamdetr.system.loading import begin_loading
from siamdetr.system.progress import Progress

ABOUT = "cache.json"
_AT_ONCE = 4  # pairs whose crops go through the backbone together
# The settings that the stored pairs depend on.
_VIEW_SETTINGS = (
    "num_regions", "size", "scales", "crop_size", "proposals", "view_iou", "inside", "distinct", "least_area", "cache_views",
)  # fmt: skip

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheRequest:
    """The place of a cache, and what computes it.

    Attributes:
        folder: of caches, one subfolder each.
        teacher: the frozen backbone, on `device`.
        device: that computes features.
        normalization: of the images.
        workers: processes that draw views.
    """

    folder: Path
    teacher: FrozenTeacher
    device: torch.device
    normalization: Normalization
    workers: int


def cached_views(source: SiameseDataset, request: CacheRequest, progress: Progress) -> CachedViews | None:
    """The stored pairs of a data set, computed now if they are not there.

    Args:
        source: images, proposals, settings and seed.
        request: place of the cache, and what computes it.
        progress: called with (pairs done, pairs in all).
    Returns:
        None where the disk is full: nothing is left there, the log says so, and the run goes on with new views at every
            read.
    Raises:
        DataError: the cache there has other sources; the text lists the differences.
    """
    about = _about(source, request)
    name = hashlib.sha256(json.dumps(about["settings"], sort_keys=True).encode()).hexdigest()[:10]
    folder = request.folder / f"{source.settings.cache_views}-{name}"
    if not (folder / ABOUT).is_file():
        try:
            _write(source, request, folder, progress)
            atomic_bytes(folder / ABOUT, json.dumps(about, indent=1).encode())
        except CheckpointError as error:  # the disk is full
            for file in (FEATURES, TABLES):
                (folder / file).unlink(missing_ok=True)
            _log.warning("%s. Going on without cached views: each step computes its own", str(error).partition(". ")[0])
            return None
    _refuse_other(folder, about)
    cache = CachedViews(folder, source.settings.cache_views)
    _log.info("Cached views: %d pairs, %.2f GB in %s", len(cache) * cache.pairs, cache.num_bytes / 1e9, folder)
    return cache


def _about(source: SiameseDataset, request: CacheRequest) -> dict[str, Any]:
    """All that the features depend on, in plain values."""
    backbone, index = request.teacher.backbone, source.index
    settings = to_json(source.settings)
    files = hashlib.sha256()
    for i in range(len(index)):
        path = index.path(i)
        files.update(f"{index.relative_path(i)} {path.stat().st_size if path.is_file() else 0}\n".encode())
    return {
        "settings": {key: settings[key] for key in _VIEW_SETTINGS}
        | {"backbone": backbone.name, "strides": list(backbone.strides), "seed": source.seed, "file": FEATURES},
        "weights": digest(dict(backbone.state_dict()))[:16],
        "normalization": [list(values) for values in request.normalization],
        "images": {"count": len(index), "names and sizes": files.hexdigest()[:16]},
        "proposals": "random" if source.proposals is None else source.proposals.recipe,
    }


def _refuse_other(folder: Path, about: Mapping[str, Any]) -> None:
    try:
        theirs = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except ValueError:
        theirs = {}
    differing = [key for key in about if theirs.get(key) != about[key]]
    if differing:
        lines = [f"  {key}: {theirs.get(key)!r} there, {about[key]!r} now" for key in differing]
        raise DataError(
            f"{folder}: cached views that were made from something else:\n" + "\n".join(lines) + "\n"
            "Delete the folder, and they are computed anew; or set cache_views=0"
        )


def _write(source: SiameseDataset, request: CacheRequest, folder: Path, progress: Progress) -> None:
    """Compute all pairs; `features.i8` is written as they come, `tables.npz` after it."""
    shapes: list[list[tuple[int, ...]]] = []
    boxes: list[NDArray[np.float32]] = []
    sizes: list[tuple[int, int]] = []

    def write(file: IO[bytes]) -> None:
        for pair in _pairs(source, request):
            file.write(as_bytes(pair))
            shapes.append([level.shape[1:] for level in pair.levels])
            boxes.append(pair.boxes)
            sizes.append(pair.size)
            progress(len(sizes), len(source) * source.settings.cache_views)

    atomic_write(folder / FEATURES, write)
    tables = io.BytesIO()
    np.savez(tables, shapes=np.asarray(shapes, np.int32), boxes=np.stack(boxes), sizes=np.asarray(sizes, np.int32))
    atomic_bytes(folder / TABLES, tables.getvalue())


@torch.no_grad()
def _pairs(source: SiameseDataset, request: CacheRequest) -> Iterator[CachedPair]:
    """Pair 0, 1, ..., K - 1 of image 0, then of image 1, and so on."""
    keys = [(pair, i) for i in range(len(source)) for pair in range(source.settings.cache_views)]
    loader: DataLoader[Any] = DataLoader(
        source,
        batch_sampler=[keys[start : start + _AT_ONCE] for start in range(0, len(keys), _AT_ONCE)],
        collate_fn=list,
        num_workers=request.workers,
        worker_init_fn=begin_loading,
        generator=torch.Generator(),  # else it would draw from the global one, which belongs to the steps
    )
    for samples in loader:
        batches = [collate_views([sample]).to(request.device).normalized(request.normalization) for sample in samples]
        together = dataclasses.replace(batches[0], crops=torch.cat([batch.crops for batch in batches]))
        crops = together.crop_features(request.teacher).half().cpu().numpy()
        for i, (sample, batch) in enumerate(zip(samples, batches, strict=True)):
            levels = tuple(level.half().cpu().numpy() for level in as_levels(batch.features(request.teacher)))
            yield CachedPair(levels, sample.boxes, crops[2 * i : 2 * i + 2], sample.images[0].shape[:2])
