"""Facts of image files from name and header, without decoding: format, size, EXIF orientation."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from siamdetr.system.progress import Progress

# Every format that is decoded, and the endings that promise it. MPO is what phones write under .jpg: a JPEG with a preview behind it.
ENDINGS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo", ".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "AVIF": (".avif", ".avifs"),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "DIB": (".dib", ".bmp"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "QOI": (".qoi",),
    "PCX": (".pcx",),
    "PSD": (".psd",),
}
FORMATS = tuple(name for name in ENDINGS if name != "MPO")  # Pillow opens it as a JPEG
IMAGE_SUFFIXES = frozenset(ending for endings in ENDINGS.values() for ending in endings)

# Pictures that no format above decodes: they are counted and named, with the advice to convert them.
FOREIGN_SUFFIXES = frozenset(
    [
        ".heic",
        ".heif",
        ".hif",
        ".jxl",
        ".jxr",
        ".jls",
        ".exr",
        ".hdr",
        ".dng",
        ".nef",
        ".nrw",
        ".cr2",
        ".cr3",
        ".crw",
        ".arw",
        ".sr2",
        ".raf",
        ".orf",
        ".rw2",
        ".pef",
        ".srw",
        ".raw",
        ".x3f",
        ".dcm",
        ".dicom",
        ".nii",
        ".czi",
        ".lif",
        ".nd2",
        ".svs",
        ".ndpi",
        ".vsi",
        ".fits",
        ".fit",
        ".svg",
        ".ai",
        ".eps",
        ".ico",
        ".icns",
        ".xcf",
        ".kra",
        ".jng",
        ".bpg",
        ".dds",
        ".ras",
        ".sgi",
    ]
)

# Folders that operating systems, storage devices and editors put beside pictures; their previews are no pictures of the data.
COMPANION_FOLDERS = frozenset(
    {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)

ORIENTATION_TAG = 0x0112  # EXIF 2.32, 1 = upright
PNG_EXIF_KEYS = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})
QUARTER_TURNS = frozenset({5, 6, 7, 8})  # orientations that exchange height and width

T = TypeVar("T")


def is_image(name: str) -> bool:
    """Whether a file name has the suffix of an image format that is decoded.

    Names that start with a dot are hidden files.
    """
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not os.path.basename(name).startswith(".")


def is_foreign_image(name: str) -> bool:
    """Whether a file name has the suffix of a format that is not decoded, such as .heic."""
    return os.path.splitext(name)[1].lower() in FOREIGN_SUFFIXES and not os.path.basename(name).startswith(".")


def is_companion_folder(name: str) -> bool:
    """Whether a folder is hidden, or made by an operating system, a storage device or an editor."""
    return name.startswith(".") or name in COMPANION_FOLDERS


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1..8 of an opened image; 1 if there is none or it is invalid."""
    if image.format == "PNG" and not PNG_EXIF_KEYS & image.info.keys():
        return 1  # Pillow would decode the whole PNG to look for a block behind the pixels
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block must not cost the image: Pillow raises what it likes here
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


@dataclass(frozen=True, slots=True)
class Header:
    """The facts in the header of an image file.

    Args:
        size: (height, width) in pixels after the EXIF rotation; (0, 0) when it cannot be read.
        turned: the EXIF rotation exchanges height and width.
        problem: "", or why it cannot be read: "missing", "empty", "too large" or "damaged".
    """

    size: tuple[int, int]
    turned: bool = False
    problem: str = ""


def read_header(path: Path) -> Header:
    """Read size and orientation of a file. Never raises."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            turned = orientation_of(image) in QUARTER_TURNS
            return Header((width, height) if turned else (height, width), turned)
    except FileNotFoundError:
        return Header((0, 0), problem="missing")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Header((0, 0), problem="too large")
    except Exception:  # a damaged header: Pillow's readers raise many kinds
        empty = os.path.isfile(path) and os.path.getsize(path) == 0
        return Header((0, 0), problem="empty" if empty else "damaged")


def read_headers(paths: Sequence[Path], *, progress: Progress | None = None, threads: int = 8) -> list[Header]:
    """`read_header` of many files, several at a time."""
    headers: list[Header] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")
        for header in map_in_batches(pool, read_header, paths):
            headers.append(header)
            if progress is not None:
                progress(len(headers), len(paths))
    return headers


def map_in_batches(
    pool: ThreadPoolExecutor, function: Callable[[Path], T], paths: Sequence[Path], batch: int = 1024
) -> Iterator[T]:
    """`pool.map` in order, without a million waiting tasks in memory."""
    for start in range(0, len(paths), batch):
        yield from pool.map(function, paths[start : start + batch])
