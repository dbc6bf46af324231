"""Detections of many image files: threads read and resize images while the model works on those before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from siamdetr.errors import DataError, ImageError, NonFiniteOutputError
from siamdetr.images.preprocessing import PreprocessingSpec, Sample, load_image, resize
from siamdetr.inference.predictor import Predictor, predict_samples
from siamdetr.inference.tiles import Tiling, predict_tiled
from siamdetr.system.ordered_map import ordered_map
from siamdetr.system.threads import usable_cores

if TYPE_CHECKING:
    import supervision as sv
    from PIL import Image

_MOST_THREADS = 8  # each holds decoded images, and no model here is fed by more

Item = TypeVar("Item")


@dataclass(frozen=True)
class Found:
    """An image file with its upright 8-bit RGB image, and detections in its pixels, best first."""

    file: Path
    image: Image.Image
    detections: sv.Detections


@dataclass(frozen=True)
class Failed:
    """An image file that could not be used, and why."""

    file: Path
    reason: str


@dataclass(frozen=True)
class _Read:
    file: Path
    image: Image.Image
    sample: Sample | None  # None: prediction is by tiles, which are resized one by one


def pipeline_threads() -> int:
    """Threads for one stage of such a pipeline on this machine."""
    return min(_MOST_THREADS, usable_cores())


def predict_files(
    model: Predictor,
    files: Sequence[Path],
    *,
    threshold: float | None = None,
    tiling: Tiling | None = None,
    batch_size: int = 8,
) -> Iterator[Found | Failed]:
    """Yield one result per file, in the given order; a file that cannot be used does not stop the others.

    At most two batches of images, and one more for each thread, are held at a time.

    Args:
        model: any opened model.
        files: images.
        threshold: least score; None: the model's own.
        tiling: None: each image as a whole.
        batch_size: images at a time; those of equal resized size are predicted together.
    """
    spec = None if tiling is not None else model.preprocessing
    threads = pipeline_threads()
    read = ordered_map(lambda file: _read(file, spec), files, threads, ahead=batch_size + threads)
    for chunk in _chunks(read, batch_size):
        found = iter(_detect(model, [one for one in chunk if isinstance(one, _Read)], threshold, tiling))
        yield from (next(found) if isinstance(one, _Read) else one for one in chunk)


def _read(file: Path, spec: PreprocessingSpec | None) -> _Read | Failed:
    try:
        image = load_image(file)
    except (ImageError, DataError) as error:
        return Failed(file, str(error))
    if spec is None:
        return _Read(file, image, None)
    try:
        return _Read(file, image, (resize(image, spec), (image.height, image.width)))
    except ImageError as error:
        return Failed(file, f"{file}: {error}")


def _detect(
    model: Predictor, images: Sequence[_Read], threshold: float | None, tiling: Tiling | None
) -> list[Found | Failed]:
    """The results of a batch; if it fails, its images are predicted one by one."""
    if not images:
        return []
    try:
        if tiling is None:
            samples = [one.sample for one in images if one.sample is not None]
            detections = predict_samples(model, samples, threshold=threshold)
        else:
            detections = [predict_tiled(model, one.image, tiling, threshold=threshold) for one in images]
    except (ImageError, NonFiniteOutputError) as error:
        if len(images) == 1:
            return [Failed(images[0].file, f"{images[0].file}: {error}")]
        return [answer for one in images for answer in _detect(model, [one], threshold, tiling)]
    return [Found(one.file, one.image, found) for one, found in zip(images, detections, strict=True)]


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
