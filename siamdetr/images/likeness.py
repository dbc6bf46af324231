"""The likeness of an image, by which near-duplicates are found: a difference hash and a grey thumbnail."""

from __future__ import annotations

import numpy as np
from PIL import Image

DECODED_SIDE = 64  # pixels; a JPEG is decoded at a fraction of its size, but its shorter side not below this
HASH_BYTES = 8
THUMBNAIL_SIDE = 16  # pixels
LIKENESS_BYTES = HASH_BYTES + THUMBNAIL_SIDE**2


def likeness_of(image: Image.Image) -> bytes:
    """`LIKENESS_BYTES` bytes: a hash of 64 bits, then a thumbnail of 16 x 16 grey levels.

    The hash says for each cell of a grey picture of 9 x 8 cells whether the next in its row is brighter.
    """
    grey = image.convert("L")
    cells = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    thumbnail = grey.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    return np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes() + thumbnail.tobytes()
