"""Preprocessing: from an image to the model's input, by one recipe that every model file stores.

Training's evaluation, `predict`, the ONNX runtime and the bundle's `infer.py` follow it bit for bit. Resizing is
Pillow's bilinear filter on 8-bit RGB (it averages when it shrinks), after the EXIF rotation. The result is uint8:
normalisation belongs to the model's side (`siamdetr.images.normalize.normalize_images`) and is part of exported graphs.
No torch here, so that a runtime without PyTorch can import this file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from siamdetr.errors import ImageError
from siamdetr.images.depth import to_rgb
from siamdetr.images.open import open_untrusted
from siamdetr.settings.base import Settings


class Normalization(NamedTuple):
    """Mean and standard deviation of (x / 255 - mean) / std, per channel (RGB), of values in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __str__(self) -> str:
        return f"mean {' '.join(f'{x:g}' for x in self.mean)}, std {' '.join(f'{x:g}' for x in self.std)}"


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLAIN = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # values in 0..1 as they are

Pixels: TypeAlias = NDArray[np.uint8]
ImageLike: TypeAlias = "Image.Image | Pixels | str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO"
Size: TypeAlias = tuple[int, int]  # (height, width), pixels
MOST_RESIZED = 64_000_000  # pixels: far above any model's input, below what would take the machine's memory


class PreprocessingSpec(Settings):
    """How an image becomes the model's input.

    - "shortest-edge": the shorter side becomes `size`, unless the longer one would pass `max_size` (DETR's evaluation).
    - "fixed": every image becomes `size` = (H, W), whatever its shape was.
    - "letterbox": the image is scaled to fit `size` = (H, W), keeping its shape; the rest, right and below, is padding.
    """

    mode: Literal["shortest-edge", "fixed", "letterbox"] = "shortest-edge"
    size: int | tuple[int, int] = Field(default=800, description="pixels: the shorter side, or (height, width)")
    max_size: int | None = Field(
        default=1333, ge=1, description="shortest-edge: bound of the longer side, pixels; None: none"
    )
    mean: tuple[float, float, float] = IMAGENET.mean
    std: tuple[float, float, float] = IMAGENET.std

    @model_validator(mode="after")
    def _size_fits_mode(self) -> PreprocessingSpec:
        wanted = int if self.mode == "shortest-edge" else tuple
        if not isinstance(self.size, wanted):
            form = "one number" if wanted is int else "(height, width)"
            raise ValueError(f"preprocessing: mode '{self.mode}' takes size as {form}, got {self.size}")
        if min(self.size if isinstance(self.size, tuple) else (self.size,)) < 1:
            raise ValueError(f"preprocessing: size must be at least 1 pixel, got {self.size}")
        if min(self.std) <= 0:
            raise ValueError(f"preprocessing: std must be above 0, got {self.std}")
        return self

    @classmethod
    def from_size(cls, size: int | Size, max_size: int | None = None) -> PreprocessingSpec:
        """The spec of one number, a shortest side, or of two, a fixed (H, W)."""
        if isinstance(size, int):
            return cls(mode="shortest-edge", size=size, max_size=max_size or round(size * 1333 / 800))
        return cls(mode="fixed", size=(size[0], size[1]))

    @property
    def normalization(self) -> Normalization:
        """`mean` and `std`."""
        return Normalization(self.mean, self.std)

    def normalized_by(self, normalization: Normalization) -> PreprocessingSpec:
        """The same recipe with another mean and standard deviation."""
        return self.model_copy(update=normalization._asdict())


@dataclass(frozen=True)
class Prepared:
    """A batch of images, ready for the model.

    Attributes:
        images: [B, 3, H, W] uint8 RGB, zero where padded.
        padding: [B, H, W] bool, True = padded, not image; None = nothing is padded.
        original_sizes: [B, 2] int64 (H, W) of the original images after EXIF rotation; predictions are in these pixels.
        sizes: [B, 2] int64 (H, W) of the resized images without padding.
    """

    images: Pixels
    padding: NDArray[np.bool_] | None
    original_sizes: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)


def preprocess(images: Iterable[ImageLike], spec: PreprocessingSpec) -> Prepared:
    """Load, rotate, resize and stack images.

    Args:
        images: PIL images, uint8 RGB arrays [H, W, 3] (or grey [H, W]), or paths.
        spec: the recipe.
    Raises:
        ImageError: an image cannot be read or is of a kind we do not take; or there is none at all.
    """
    loaded = [load_image(image) for image in images]
    return stack([(resize(image, spec), (image.height, image.width)) for image in loaded], spec)


def batches(
    images: Sequence[ImageLike], spec: PreprocessingSpec, batch_size: int
) -> Iterator[tuple[list[int], Prepared]]:
    """Batch images of equal resized size, so that none is padded because of another.

    So the predictions for an image never depend on its neighbours. At most 4 batches of images are held at a time.

    Yields:
        Positions in `images`, and those images prepared. Every position comes once; their order is by size.
    """
    samples = ((i, prepare_sample(image, spec)) for i, image in enumerate(images))
    yield from group_by_size(samples, spec, batch_size)


Sample: TypeAlias = tuple[Pixels, Size]  # resized [h, w, 3], original (H, W)


def prepare_sample(image: ImageLike, spec: PreprocessingSpec) -> Sample:
    """Load and resize one image for `group_by_size` and `stack`; with its original (H, W)."""
    loaded = load_image(image)
    return resize(loaded, spec), (loaded.height, loaded.width)


def group_by_size(
    samples: Iterable[tuple[int, Sample]], spec: PreprocessingSpec, batch_size: int
) -> Iterator[tuple[list[int], Prepared]]:
    """Batch samples of equal resized size, each batch as soon as it is full; see `batches`."""
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    waiting: dict[tuple[int, ...], list[tuple[int, Sample]]] = {}
    for position, sample in samples:
        key = () if spec.mode == "letterbox" else sample[0].shape
        waiting.setdefault(key, []).append((position, sample))
        if len(waiting[key]) < batch_size:
            if sum(map(len, waiting.values())) < 4 * batch_size:
                continue
            key = max(waiting, key=lambda shape: len(waiting[shape]))
        yield _batch(waiting.pop(key), spec)
    for rest in waiting.values():
        yield _batch(rest, spec)


def _batch(group: list[tuple[int, Sample]], spec: PreprocessingSpec) -> tuple[list[int], Prepared]:
    return [position for position, _ in group], stack([sample for _, sample in group], spec)


def stack(samples: Sequence[Sample], spec: PreprocessingSpec) -> Prepared:
    """One batch of resized images, zero-padded right and below to the largest, or to the letterbox."""
    if not samples:
        raise ImageError("preprocess: got no image at all, expected at least one")
    sizes = np.array([pixels.shape[:2] for pixels, _ in samples], dtype=np.int64)
    height, width = spec.size if spec.mode == "letterbox" and isinstance(spec.size, tuple) else sizes.max(axis=0)
    images = np.zeros((len(samples), 3, height, width), dtype=np.uint8)
    for image, (pixels, _) in zip(images, samples, strict=True):
        image[:, : pixels.shape[0], : pixels.shape[1]] = pixels.transpose(2, 0, 1)
    originals = np.array([size for _, size in samples], dtype=np.int64)
    return Prepared(images, padding_of(sizes, height, width), originals, sizes)


def padding_of(sizes: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_] | None:
    """[B, height, width], True = padded, of a batch whose images without padding are [B, 2] (H, W).

    None: nothing is padded.
    """
    if (sizes == (height, width)).all():
        return None
    rows = np.arange(height)[None, :, None] >= sizes[:, 0, None, None]
    columns = np.arange(width)[None, None, :] >= sizes[:, 1, None, None]
    return rows | columns


def resize(image: Image.Image, spec: PreprocessingSpec) -> Pixels:
    """[h, w, 3] uint8: the RGB image at the spec's size, without padding.

    Raises:
        ImageError: a strip whose longer side nothing bounds.
    """
    height, width = resized_size((image.height, image.width), spec)
    if height * width > MOST_RESIZED:
        raise ImageError(
            f"image: {image.width} × {image.height} pixels would become {width} × {height}: too elongated for a model that "
            "resizes the shorter side; cut it into pieces"
        )
    if (image.height, image.width) != (height, width):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def resized_size(original: Size, spec: PreprocessingSpec) -> Size:
    """(H, W) of the resized image without padding, from the original (H, W); each at least 1."""
    height, width = original
    if isinstance(spec.size, tuple):
        if spec.mode == "fixed":
            return spec.size
        scale = min(spec.size[0] / height, spec.size[1] / width)
        return max(1, round(height * scale)), max(1, round(width * scale))
    short, long = min(height, width), max(height, width)
    size = spec.size
    if spec.max_size is not None and long / short * size > spec.max_size:
        size = max(1, round(spec.max_size * short / long))
    other = max(1, int(size * long / short))
    return (size, other) if height <= width else (other, size)


def is_one_image(images: ImageLike | Sequence[ImageLike]) -> TypeGuard[ImageLike]:
    """Whether this is one image in any accepted form, not a sequence of images."""
    whole = isinstance(images, Image.Image | np.ndarray | str | bytes | bytearray | memoryview)
    return whole or isinstance(images, os.PathLike) or hasattr(images, "read")


def load_image(image: ImageLike) -> Image.Image:
    """An 8-bit RGB image, upright.

    EXIF orientation is applied to PIL images and files. Transparency is dropped; deeper pixels are scaled to 8 bits,
    see `siamdetr.images.depth`.

    Args:
        image: a PIL image, a uint8 RGB array [H, W, 3] (or grey [H, W]), a path, the content of a file, or a file
            object.
    Raises:
        ImageError: no such file, not an image, truncated, too large, or an array that is not uint8 [H, W, 3] or [H, W].
    """
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Image.Image):
        return _from_pillow(image)
    if isinstance(image, bytes | bytearray | memoryview | str | os.PathLike) or hasattr(image, "read"):
        return open_untrusted(image)
    raise ImageError(
        f"image: got {type(image).__name__}, expected a PIL image, a uint8 RGB array [H, W, 3], a path, or a file's bytes"
    )


def _from_array(array: NDArray[Any]) -> Image.Image:
    fits = array.dtype == np.uint8 and array.size > 0 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3))
    if not fits:
        raise ImageError(
            f"image: got an array {list(array.shape)} of {array.dtype}, expected uint8 RGB [H, W, 3] or grey [H, W], "
            "neither empty nor channels first; values 0..255"
        )
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _from_pillow(image: Image.Image) -> Image.Image:
    if image.width == 0 or image.height == 0:
        raise ImageError(f"image: empty, {image.width} × {image.height} pixels")
    try:
        return to_rgb(image)
    except (OSError, SyntaxError, ValueError) as error:  # one that Pillow had opened and not decoded yet
        raise ImageError(f"image: truncated or damaged ({error}); fetch it again or leave it out") from error
