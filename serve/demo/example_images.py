"""Pictures of the demo: a stranger's upload behind a gate, and examples to begin with."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from siamdetr.data.readers.paths import walk_images
from siamdetr.data.synthetic.shapes import draw_image
from siamdetr.errors import ImageError
from siamdetr.images.preprocessing import load_image
from siamdetr.training.run_folder import validation_part

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MOST_BYTES = 10_000_000
MOST_PIXELS = 40_000_000
LONGEST_SIDE = 16_384
MOST_ELONGATED = 20  # times the shorter side: a model enlarges the shorter one

NUM_EXAMPLES = 8


@dataclass(frozen=True)
class Example:
    """A picture to begin with: a file, or one that is drawn."""

    name: str
    picture: Path | Image.Image

    def open(self) -> Image.Image:
        """The picture, upright RGB.

        Raises:
            ImageError: the file cannot be read, or is too large.
        """
        if isinstance(self.picture, Image.Image):
            return self.picture
        try:
            return open_upload(self.picture.read_bytes())
        except OSError as error:
            raise ImageError(f"{self.name}: {error.strerror or error}") from None


def open_upload(data: bytes) -> Image.Image:
    """A stranger's file as an upright RGB image (of an animation the first frame). Too large ones are refused by their header,
    before decoding: 20 KB of PNG may unpack to hundreds of megabytes.

    Raises:
        ImageError: empty, too large, of another format, truncated or damaged.
    """
    if not data:
        raise ImageError("The file is empty.")
    if len(data) > MOST_BYTES:
        raise ImageError(f"The file has {len(data) / 1e6:.0f} MB, at most {MOST_BYTES / 1e6:.0f} MB are taken.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about files that it then reads, or that are refused below
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(*image.size)
            return load_image(image)
    except UnidentifiedImageError:
        raise ImageError(f"This is no image in the formats {', '.join(FORMATS)}.") from None
    except Image.DecompressionBombError:
        raise ImageError(
            f"The image has far more than the {MOST_PIXELS / 1e6:.0f} million pixels that are taken."
        ) from None
    except ImageError:
        raise
    except Exception:  # Pillow's readers raise what they like on damaged files
        raise ImageError("The image is truncated or damaged.") from None


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS or max(width, height) > LONGEST_SIDE:
        raise ImageError(
            f"The image has {width} × {height} pixels, at most {MOST_PIXELS / 1e6:.0f} million and {LONGEST_SIDE} a side are taken."
        )
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise ImageError(f"The image has {width} × {height} pixels: too elongated to be resized for a detector.")


def find_examples(folder: Path | None, model: Path) -> list[Example]:
    """Pictures to begin with.

    Args:
        folder: of images, or None: those the model was validated on, if it lies in a run whose data is still there; else drawn ones.
        model: a run folder or model file.
    Raises:
        FileNotFoundError: `folder` is given and holds no image.
    """
    if folder is not None:
        files = [folder / name for name in walk_images(folder)] if folder.is_dir() else []
        if not files:
            raise FileNotFoundError(f"{folder}: no images here to begin with; give --examples a folder of images")
        return [Example(file.name, file) for file in _spread(files)]
    files = _validation_images(model)
    return [Example(file.name, file) for file in _spread(files)] if files else _drawn()


def _validation_images(model: Path) -> list[Path]:
    index = validation_part(model if model.is_dir() else model.parent)
    return [] if index is None else [index.path(i) for i in range(len(index))]


def _spread(files: list[Path]) -> list[Path]:
    picked = np.linspace(0, len(files) - 1, min(NUM_EXAMPLES, len(files))).round().astype(int)
    return [files[i] for i in picked]


def _drawn() -> list[Example]:
    pictures = [draw_image(np.random.default_rng(i), 320)[0] for i in range(NUM_EXAMPLES)]
    return [Example(f"drawn {i + 1}", Image.fromarray(pixels)) for i, pixels in enumerate(pictures)]
