"""Frozen features of fixed view pairs, kept on disk, so that a pretraining step costs the transformer alone.

The backbone of pretraining never changes, and neither do K pairs of views an image: their feature maps and the features of their crops
are computed once, stored as float16 in one memory-mapped file, and read instead of images. Ours; the official code makes new views at
every read, which K trades for speed. Features are those of each pair alone, without the padding of a batch, and padded with zeros.

A folder holds `features.f16`, `tables.npz` (shapes, boxes, sizes) and, written last, `cache.json`: what the features were made from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from siamdetr.errors import CheckpointError, DataError
from siamdetr.images.preprocessing import Normalization
from siamdetr.model_file import digest
from siamdetr.models.backbone.pyramid import Maps, as_levels
from siamdetr.pretext.common import FrozenTeacher
from siamdetr.pretext.datasets import SiameseDataset, collate_views
from siamdetr.settings.base import to_json
from siamdetr.structures.targets import Targets, region_targets
from siamdetr.system.atomic_file import atomic_bytes, atomic_write
from siamdetr.system.progress import Progress

FEATURES, TABLES, ABOUT = "features.f16", "tables.npz", "cache.json"
_AT_ONCE = 4  # pairs whose crops go through the backbone together
# What of the settings the stored pairs depend on.
_VIEW_SETTINGS = (
    "num_regions", "size", "scales", "crop_size", "proposals", "view_iou", "inside", "distinct", "least_area", "cache_views",
)  # fmt: skip

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheRequest:
    """The input of a cache, besides the data set.

    Attributes:
        folder: in which caches of different settings lie side by side.
        teacher: the frozen backbone, on the device that computes.
        device: that computes.
        normalization: of the images.
        workers: processes that make views.
    """

    folder: Path
    teacher: FrozenTeacher
    device: torch.device
    normalization: Normalization
    workers: int


@dataclass(frozen=True)
class CachedViewBatch:
    """Frozen features of two views of each of B images: view 1 of all, then view 2 of all.

    Otherwise as `ViewBatch`.

    Attributes:
        levels: [2B, F, h, w] float16 of each level, zero where padded.
        padding: [2B, H, W] bool, True = padded, not image.
        boxes: [2B, P, 4] (cx, cy, w, h) fractions of the unpadded view.
        sizes: [2B, 2] int64 (H, W) of the unpadded views, pixels.
        crops: [2B, P, F] float16, features of the crops.
    """

    levels: tuple[Tensor, ...]
    padding: Tensor
    boxes: Tensor
    sizes: Tensor
    crops: Tensor

    @property
    def targets(self) -> Targets:
        """See `ViewBatch`."""
        return region_targets(self.boxes.flatten(0, 1), [self.boxes.shape[1]] * len(self.boxes))

    def features(self, teacher: FrozenTeacher) -> Maps:
        """See `ViewBatch`; float32."""
        maps = tuple(level.float() for level in self.levels)
        return maps[0] if len(maps) == 1 else maps

    def crop_features(self, teacher: FrozenTeacher) -> Tensor:
        """See `ViewBatch`; float32."""
        return self.crops.float()

    def normalized(self, normalization: Normalization) -> CachedViewBatch:
        """The batch as it is: its images were normalised when it was made."""
        return self

    def to(self, device: torch.device | str, non_blocking: bool = False) -> CachedViewBatch:
        """The same batch on another device."""
        return CachedViewBatch(
            tuple(level.to(device, non_blocking=non_blocking) for level in self.levels),
            *(
                part.to(device, non_blocking=non_blocking)
                for part in (self.padding, self.boxes, self.sizes, self.crops)
            ),
        )

    def pin_memory(self) -> CachedViewBatch:
        """The same batch in page-locked memory (the data loader calls this)."""
        return CachedViewBatch(
            tuple(level.pin_memory() for level in self.levels),
            *(part.pin_memory() for part in (self.padding, self.boxes, self.sizes, self.crops)),
        )


@dataclass(frozen=True)
class CachedPair:
    """One stored pair of views.

    Attributes:
        levels: [2, F, h, w] float16 of each level.
        boxes: [2, P, 4] float32.
        crops: [2, P, F] float16.
        size: (H, W) of both views, pixels.
    """

    levels: tuple[NDArray[np.float16], ...]
    boxes: NDArray[np.float32]
    crops: NDArray[np.float16]
    size: tuple[int, int]


class CachedViews(Dataset[CachedPair]):
    """Pairs by (epoch, i): pair `epoch % K` of image i. The file is mapped anew in every worker process."""

    def __init__(self, folder: Path, pairs: int) -> None:
        self.folder, self.pairs = folder, pairs
        with np.load(folder / TABLES) as tables:
            self._shapes = tables["shapes"]  # [N, L, 3] channels, height and width of a level
            self._boxes, self._sizes = tables["boxes"], tables["sizes"]  # [N, 2, P, 4], [N, 2]
        lengths = 2 * self._shapes.astype(np.int64).prod(-1)  # [N, L]
        self._crop_length = 2 * self._boxes.shape[2] * int(self._shapes[0, :, 0].sum())
        self._ends = np.concatenate([[0], (lengths.sum(-1) + self._crop_length).cumsum()])
        self._map: NDArray[np.float16] | None = None

    def __len__(self) -> int:
        return len(self._sizes) // self.pairs

    @property
    def num_bytes(self) -> int:
        """Of the features."""
        return 2 * int(self._ends[-1])

    def __getitem__(self, key: tuple[int, int]) -> CachedPair:
        epoch, i = key
        record = i * self.pairs + epoch % self.pairs
        if self._map is None:
            self._map = np.memmap(self.folder / FEATURES, dtype=np.float16, mode="r")
        flat = np.array(self._map[self._ends[record] : self._ends[record + 1]])
        levels, start = [], 0
        for channels, height, width in self._shapes[record].tolist():
            stop = start + 2 * channels * height * width
            levels.append(flat[start:stop].reshape(2, channels, height, width))
            start = stop
        height, width = self._sizes[record].tolist()
        boxes = self._boxes[record]
        return CachedPair(tuple(levels), boxes, flat[start:].reshape(2, boxes.shape[1], -1), (height, width))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}


def collate_cached(items: Sequence[CachedPair]) -> CachedViewBatch:
    """One batch: view 1 of all pairs, then view 2 of all, zero-padded at the right and bottom."""
    count = len(items)
    sizes = torch.tensor([item.size for item in items] * 2, dtype=torch.int64)
    height, width = sizes.amax(0).tolist()
    rows, columns = (
        torch.arange(height)[:, None] >= sizes[:, 0, None, None],
        torch.arange(width) >= sizes[:, 1, None, None],
    )
    levels = []
    for level in range(len(items[0].levels)):
        maps = [item.levels[level] for item in items]
        shape = (2 * count, maps[0].shape[1], max(one.shape[2] for one in maps), max(one.shape[3] for one in maps))
        canvas = np.zeros(shape, dtype=np.float16)
        for i, one in enumerate(maps):
            canvas[i::count, :, : one.shape[2], : one.shape[3]] = one
        levels.append(torch.from_numpy(canvas))
    return CachedViewBatch(
        levels=tuple(levels),
        padding=rows | columns,
        boxes=torch.from_numpy(np.concatenate([[item.boxes[view] for item in items] for view in (0, 1)])),
        sizes=sizes,
        crops=torch.from_numpy(np.concatenate([[item.crops[view] for item in items] for view in (0, 1)])),
    )


def cached_views(source: SiameseDataset, request: CacheRequest, progress: Progress) -> CachedViews | None:
    """The stored pairs of a data set: those that are there, or computed now.

    Args:
        source: images, proposals, settings and seed.
        request: where to, and what computes.
        progress: called with (pairs done, pairs in all).
    Returns:
        None where the disk is full: nothing is left there, the log says so, and the run goes on with new views at every read.
    Raises:
        DataError: there is a cache in its place that was made from something else; the text lists the differences.
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
    """Everything that the features depend on, in plain values."""
    backbone, index = request.teacher.backbone, source.index
    settings = to_json(source.settings)
    files = hashlib.sha256()
    for i in range(len(index)):
        path = index.path(i)
        files.update(f"{index.relative_path(i)} {path.stat().st_size if path.is_file() else 0}\n".encode())
    return {
        "settings": {key: settings[key] for key in _VIEW_SETTINGS}
        | {"backbone": backbone.name, "strides": list(backbone.strides), "seed": source.seed},
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
    """Compute all pairs; `features.f16` is written as they come, `tables.npz` after it."""
    shapes: list[list[tuple[int, ...]]] = []
    boxes: list[NDArray[np.float32]] = []
    sizes: list[tuple[int, int]] = []

    def write(file: IO[bytes]) -> None:
        for pair in _pairs(source, request):
            for level in pair.levels:
                file.write(level.tobytes())
            file.write(pair.crops.tobytes())
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
        generator=torch.Generator(),  # else it would draw from the global one, which belongs to the steps
    )
    for samples in loader:
        batches = [collate_views([sample]).to(request.device).normalized(request.normalization) for sample in samples]
        together = dataclasses.replace(batches[0], crops=torch.cat([batch.crops for batch in batches]))
        crops = together.crop_features(request.teacher).half().cpu().numpy()
        for i, (sample, batch) in enumerate(zip(samples, batches, strict=True)):
            levels = tuple(level.half().cpu().numpy() for level in as_levels(batch.features(request.teacher)))
            yield CachedPair(levels, sample.boxes, crops[2 * i : 2 * i + 2], sample.images[0].shape[:2])
