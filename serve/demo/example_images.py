"""Pictures of the demo: untrusted uploads, which are checked, and examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from siamdetr.data.readers.paths import walk_images
from siamdetr.data.synthetic.shapes import draw_image
from siamdetr.errors import ImageError
from siamdetr.images.open import UPLOAD_LIMITS, open_header, open_untrusted, read_bytes
from siamdetr.training.run_folder import validation_part

MOST_BYTES = UPLOAD_LIMITS.file_bytes
MOST_ELONGATED = 20  # times the shorter side: a model enlarges the shorter one

NUM_EXAMPLES = 8


@dataclass(frozen=True)
class Example:
    """An example picture: a file, or a drawn one."""

    name: str
    picture: Path | Image.Image

    def open(self) -> Image.Image:
        """The picture, upright RGB.

        Raises:
            ImageError: the file cannot be read, or is too large.
        """
        if isinstance(self.picture, Image.Image):
            return self.picture
        return open_upload(self.picture, name=self.name)


def open_upload(source: bytes | Path, *, name: str = "the picture") -> Image.Image:
    """Open an untrusted file as an upright RGB image, within the limits of an upload.

    Raises:
        ImageError: no such file, empty, too large, too elongated, of another format, truncated or damaged.
    """
    data = read_bytes(source, name=name)
    with open_header(data, UPLOAD_LIMITS, name=name) as header:
        width, height = header.size
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise ImageError(f"{name}: {width} × {height} pixels: too elongated to be resized for a detector")
    return open_untrusted(data, UPLOAD_LIMITS, name=name)


def find_examples(folder: Path | None, model: Path) -> list[Example]:
    """Find example pictures.

    Args:
        folder: of images, or None: those the model was validated on, if it lies in a run whose data is still there;
            else drawn ones.
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
