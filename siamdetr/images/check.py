"""Looks at one image file the way training will: its bytes, its header, its pixels. Never raises."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from siamdetr.images.header import QUARTER_TURNS, map_in_batches, orientation_of

MAX_PIXELS = 40_000_000  # a larger image is judged by its header alone: decoding it could take the machine's memory
DIGEST_BYTES = 16  # of the SHA-256: enough to tell a billion files apart
DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})

# File endings that promise a format. MPO is what phones write under .jpg: a JPEG with a preview behind it.
FORMATS_OF_SUFFIX = {
    ".jpg": ("JPEG", "MPO"),
    ".jpeg": ("JPEG", "MPO"),
    ".png": ("PNG",),
    ".bmp": ("BMP",),
    ".webp": ("WEBP",),
    ".gif": ("GIF",),
    ".tif": ("TIFF",),
    ".tiff": ("TIFF",),
}


@dataclass(frozen=True)
class ImageFacts:
    """What one file is.

    Args:
        digest: first bytes of the SHA-256 of the file; b"" when it cannot be read.
        size: (height, width) in pixels as seen, after the EXIF rotation; (0, 0) when not known.
        stored_size: (height, width) before the rotation.
        findings: (kind, figures) for every problem of the file itself.
    """

    digest: bytes
    size: tuple[int, int]
    stored_size: tuple[int, int]
    findings: tuple[tuple[str, str], ...]


def check_image(path: Path) -> ImageFacts:
    """Hashes, opens and decodes one file."""
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").digest()[:DIGEST_BYTES]
        length = path.stat().st_size
    except OSError as error:
        return ImageFacts(b"", (0, 0), (0, 0), (("missing-image", error.strerror or str(error)),))
    if length == 0:
        return ImageFacts(b"", (0, 0), (0, 0), (("empty-file", ""),))
    try:
        with Image.open(path) as image:
            return _facts_of(image, path, digest)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        finding = ("huge-image", str(error).split(",")[0])
    except UnidentifiedImageError:
        finding = ("corrupt-image", f"{length} bytes")
    except Exception as error:  # a damaged header: Pillow's readers raise many kinds
        finding = ("corrupt-image", _short(error))
    return ImageFacts(digest, (0, 0), (0, 0), (finding,))


def check_images(paths: Sequence[Path], workers: int) -> Iterator[ImageFacts]:
    """`check_image` of many files, in order, on `workers` threads: hashing and decoding run outside Python's lock."""
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # damaged EXIF and large images are findings, not warnings
        yield from map_in_batches(pool, check_image, paths)


def _facts_of(image: Image.Image, path: Path, digest: bytes) -> ImageFacts:
    findings: list[tuple[str, str]] = []
    width, height = image.size
    mode = image.mode
    expected = FORMATS_OF_SUFFIX.get(path.suffix.lower())
    if expected is not None and image.format not in expected:
        findings.append(("wrong-extension", f"named {path.suffix}, is {image.format}"))
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        findings.append(("several-frames", f"{frames} frames"))
    if mode in DEEP_MODES:
        findings.append(("deep-image", f"mode {mode}"))
    elif mode != "RGB":
        findings.append(("not-rgb", f"mode {mode}"))
    if width * height > MAX_PIXELS:
        findings.append(("huge-image", f"{width} x {height} pixels, limit {MAX_PIXELS // 1_000_000} million"))
    else:
        image.draft("RGB", (width // 8, height // 8))  # JPEG: reads every byte, but spares most of the arithmetic
        try:
            image.load()
        except Exception as error:  # broken data: Pillow's decoders raise many kinds
            findings.append(("truncated-image", _short(error)))
    orientation = orientation_of(image)
    if orientation != 1:
        findings.append(("exif-rotated", f"orientation {orientation}"))
    size = (width, height) if orientation in QUARTER_TURNS else (height, width)
    return ImageFacts(digest, size, (height, width), tuple(findings))


def _short(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:100]
