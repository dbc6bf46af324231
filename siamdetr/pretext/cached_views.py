"""The stored features of fixed pairs of views, which `view_cache` makes, and their batches.

A record holds the crops' features and a step for each channel of either view as float16, then the maps as 8-bit
multiples of the steps: half of float16's bytes, at an error of at most 1/254 of the channel's largest value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from siamdetr.images.preprocessing import Normalization
from siamdetr.models.backbone.pyramid import Maps
from siamdetr.pretext.batches import view_targets, with_each
from siamdetr.pretext.common import FrozenTeacher
from siamdetr.structures.targets import Targets

FEATURES, TABLES = "features.i8", "tables.npz"
_MOST = 127  # steps


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
        return view_targets(self.boxes)

    def features(self, teacher: FrozenTeacher) -> Maps:
        """See `ViewBatch`; float32."""
        maps = tuple(level.float() for level in self.levels)
        return maps[0] if len(maps) == 1 else maps

    def crop_features(self, teacher: FrozenTeacher) -> Tensor:
        """See `ViewBatch`; float32."""
        return self.crops.float()

    def normalized(self, normalization: Normalization) -> CachedViewBatch:
        """The same batch: its images were normalised before their features were computed."""
        return self

    def to(self, device: torch.device | str, non_blocking: bool = False) -> CachedViewBatch:
        """The same batch on another device."""
        return with_each(self, lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> CachedViewBatch:
        """The same batch in page-locked memory (the data loader calls this)."""
        return with_each(self, lambda part: part.pin_memory())


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
        cells = 2 * self._shapes.astype(np.int64).prod(-1)  # [N, L]
        channels, regions = int(self._shapes[0, :, 0].sum()), self._boxes.shape[2]
        self._floats = (2, regions + 1, channels)  # the crops, then the steps
        self._ends = np.concatenate([[0], (cells.sum(-1) + 2 * np.prod(self._floats)).cumsum()])
        self._map: NDArray[np.int8] | None = None

    def __len__(self) -> int:
        return len(self._sizes) // self.pairs

    @property
    def num_bytes(self) -> int:
        """Bytes of the features."""
        return int(self._ends[-1])

    def __getitem__(self, key: tuple[int, int]) -> CachedPair:
        epoch, i = key
        record = i * self.pairs + epoch % self.pairs
        if self._map is None:
            self._map = np.memmap(self.folder / FEATURES, dtype=np.int8, mode="r")
        flat = np.array(self._map[self._ends[record] : self._ends[record + 1]])
        start, first = 2 * int(np.prod(self._floats)), 0
        floats = flat[:start].view(np.float16).reshape(self._floats)
        levels = []
        for channels, height, width in self._shapes[record].tolist():
            stop, last = start + 2 * channels * height * width, first + channels
            codes = flat[start:stop].reshape(2, channels, height, width)
            levels.append(codes.astype(np.float16) * floats[:, -1, first:last, None, None])
            start, first = stop, last
        height, width = self._sizes[record].tolist()
        return CachedPair(tuple(levels), self._boxes[record], floats[:, :-1], (height, width))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}


def as_bytes(pair: CachedPair) -> bytes:
    """The record of a pair."""
    coded = [_coded(level) for level in pair.levels]
    steps = np.concatenate([step for _, step in coded], axis=1)[:, None]  # [2, 1, F]
    floats = np.concatenate([pair.crops, steps], axis=1)
    return b"".join([floats.tobytes(), *(codes.tobytes() for codes, _ in coded)])


def _coded(level: NDArray[np.float16]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """[2, F, h, w] -> the same as multiples, -127..127, of [2, F] steps."""
    wide = level.astype(np.float32)
    steps = (np.abs(wide).max((2, 3)) / _MOST).astype(np.float16)
    each = np.where(steps > 0, steps, 1).astype(np.float32)[..., None, None]  # an empty channel has step 0
    return np.rint(wide / each).clip(-_MOST, _MOST).astype(np.int8), steps


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
