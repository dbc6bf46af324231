"""Image files by their header: suffix, size and EXIF orientation, without decoding."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from PIL import Image

from siamdetr.system.progress import Progress

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2"})


T = TypeVar("T")


ORIENTATION_TAG = 0x0112  # EXIF 2.32, 1 = upright


PNG_EXIF_KEYS = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})


QUARTER_TURNS = frozenset({5, 6, 7, 8})  # orientations that exchange height and width


def is_image(name: str) -> bool:
    """Whether a file name ends like an image; names that start with a dot are hidden files."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1..8 of an opened image; 1 when there is none or it is nonsense."""
    if image.format == "PNG" and not PNG_EXIF_KEYS & image.info.keys():
        return 1  # Pillow would decode the whole PNG to look for a block behind the pixels
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block must not cost the image: Pillow raises what it likes here
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def read_size(path: Path) -> tuple[int, int] | None:
    """(height, width) in pixels after the EXIF rotation, from the header alone; None when it cannot be read."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (width, height) if orientation_of(image) in QUARTER_TURNS else (height, width)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None


def read_sizes(
    paths: Sequence[Path], *, progress: Progress | None = None, threads: int = 8
) -> list[tuple[int, int] | None]:
    """`read_size` of many files, several at a time."""
    sizes: list[tuple[int, int] | None] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")
        for size in map_in_batches(pool, read_size, paths):
            sizes.append(size)
            if progress is not None:
                progress(len(sizes), len(paths))
    return sizes


def map_in_batches(
    pool: ThreadPoolExecutor, function: Callable[[Path], T], paths: Sequence[Path], batch: int = 1024
) -> Iterator[T]:
    """`pool.map` in order, without a million waiting tasks in memory."""
    for start in range(0, len(paths), batch):
        yield from pool.map(function, paths[start : start + batch])
