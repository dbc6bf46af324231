"""Check one image file as training reads it: bytes, header, pixels. Never raises."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from siamdetr.errors import UnreadableImageError
from siamdetr.images.depth import DEPTH_KEY
from siamdetr.images.header import ENDINGS, QUARTER_TURNS, map_in_batches, orientation_of
from siamdetr.images.likeness import DECODED_SIDE, likeness_of
from siamdetr.images.open import open_header, open_untrusted, read_bytes

MANY_PIXELS = 40_000_000  # larger images are decoded one at a time: several at once could take the machine's memory
DIGEST_BYTES = 16  # of the SHA-256: enough to tell a billion files apart
_KINDS = {
    "missing": "missing-image",
    "empty": "empty-file",
    "too large": "too-large-image",
    "unknown format": "corrupt-image",
    "damaged": "corrupt-image",
}
_one_large_image = threading.Lock()


@dataclass(frozen=True)
class ImageFacts:
    """The facts of one file.

    Args:
        digest: first bytes of the SHA-256 of the file; b"" when it cannot be read.
        size: (height, width) in pixels as seen, after the EXIF rotation; (0, 0) when not known.
        findings: (kind, figures) for every problem of the file itself.
        likeness: see `images.likeness`; b"" when the pixels cannot be read.
    """

    digest: bytes
    size: tuple[int, int]
    findings: tuple[tuple[str, str], ...]
    likeness: bytes = b""


def check_image(path: Path) -> ImageFacts:
    """Hash, open and decode one file."""
    digest = b""
    try:
        data = read_bytes(path)
        digest = hashlib.sha256(data).digest()[:DIGEST_BYTES] if data else b""
        with open_header(data, name=path.name) as image:
            size, findings = _facts_of_header(image, path)
    except UnreadableImageError as error:
        cause = f"{len(data)} bytes" if error.reason == "unknown format" else _cause(error)
        return ImageFacts(digest, (0, 0), ((_KINDS[error.reason], "" if error.reason == "empty" else cause),))
    of_pixels, likeness = _facts_of_pixels(data, path, size)
    return ImageFacts(digest, size, (*findings, *of_pixels), likeness)


def check_images(paths: Sequence[Path], workers: int) -> Iterator[ImageFacts]:
    """`check_image` of many files, in order, on `workers` threads.

    Hashing and decoding run outside Python's lock.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # damaged EXIF and large images are findings, not warnings
        yield from map_in_batches(pool, check_image, paths)


def _facts_of_header(image: Image.Image, path: Path) -> tuple[tuple[int, int], list[tuple[str, str]]]:
    findings: list[tuple[str, str]] = []
    width, height = image.size
    promised = [name for name, endings in ENDINGS.items() if path.suffix.lower() in endings]
    if promised and image.format not in promised:
        findings.append(("wrong-extension", f"named {path.suffix}, is {image.format}"))
    frames = 1 if image.format in ("MPO", "PSD") else getattr(image, "n_frames", 1)
    if frames > 1:
        findings.append(("several-frames", f"{frames} frames"))
    if image.mode != "RGB" and image.mode != "F" and not image.mode.startswith("I"):
        findings.append(("not-rgb", f"mode {image.mode}"))
    if width * height > MANY_PIXELS:
        findings.append(("huge-image", f"{width} x {height} pixels"))
    orientation = orientation_of(image)
    if orientation != 1:
        findings.append(("exif-rotated", f"orientation {orientation}"))
    return (width, height) if orientation in QUARTER_TURNS else (height, width), findings


def _facts_of_pixels(data: bytes, path: Path, size: tuple[int, int]) -> tuple[list[tuple[str, str]], bytes]:
    """(findings, likeness), decoded as in training; every byte of a JPEG is read, with a fraction of the arithmetic."""
    with _one_large_image if size[0] * size[1] > MANY_PIXELS else nullcontext():
        try:
            image = open_untrusted(data, name=path.name, at_least=DECODED_SIDE)
        except UnreadableImageError as error:
            return [("truncated-image", _cause(error))], b""
    findings = [("deep-image", image.info[DEPTH_KEY])] if DEPTH_KEY in image.info else []
    return findings, likeness_of(image)


def _cause(error: UnreadableImageError) -> str:
    """The error's text without file name and advice, which the report adds itself."""
    text = str(error).partition(": ")[2].partition(";")[0]
    return text.removeprefix("truncated or damaged (").removesuffix(")")[:100]
