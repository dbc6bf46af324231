"""Pictures made for tests."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import gradio
import matplotlib
import numpy as np
from PIL import Image


def coordinate_image(width: int = 240, height: int = 160) -> Image.Image:
    """Red says where in x a pixel lies (0..255 over the width), green where in y."""
    x = np.broadcast_to((np.arange(width) + 0.5) / width * 255, (height, width))
    y = np.broadcast_to(((np.arange(height) + 0.5) / height * 255)[:, None], (height, width))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=2).round().astype(np.uint8))


def photos() -> list[Image.Image]:
    """Natural photos that installed packages carry, 224 pixels square."""
    files = [Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"]
    files += sorted((Path(gradio.__file__).parent / "media_assets" / "images").glob("*.jpg"))
    return [Image.open(file).convert("RGB").resize((224, 224)) for file in files]


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises width × height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
