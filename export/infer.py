#!/usr/bin/env python3
"""Detect objects in pictures with an exported model.

Needs numpy, Pillow and onnxruntime; neither PyTorch nor siamdetr.

    python infer.py picture.jpg [more.jpg ...] [--model model.onnx] [--threshold 0.5]

Prints a JSON list: for every picture its file and its detections (label, name, score, box x0 y0 x1 y1 in pixels), or
what is wrong with it; then the exit code is 1. To use it from Python: `Detector("model.onnx").predict("picture.jpg")`.
It reads classes, preprocessing and threshold from the model file.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageFile, ImageOps


class Detector:
    """An exported model on the CPU, or on the execution providers in `providers`.

    They are names, or (name, options), as in onnxruntime.
    """

    def __init__(
        self, model: str | Path, providers: tuple[str | tuple[str, dict[str, Any]], ...] = ("CPUExecutionProvider",)
    ) -> None:
        self.session = onnxruntime.InferenceSession(str(model), providers=list(providers))
        first = providers[0] if isinstance(providers[0], str) else providers[0][0]
        actual = self.session.get_providers()
        if first not in actual:  # onnxruntime falls back in silence
            raise RuntimeError(f"{model}: asked for {first}, onnxruntime fell back to {actual[0]}")
        text = self.session.get_modelmeta().custom_metadata_map.get("siamdetr")
        if text is None:
            raise ValueError(f"{model}: an ONNX file that siamdetr did not export: it lacks the metadata 'siamdetr'")
        card = json.loads(text)
        self.class_names: list[str] = card["class_names"]
        self.threshold: float = card.get("threshold", 0.5)  # files of siamdetr 0.1.0 name none
        self.preprocessing: dict[str, Any] = card["preprocessing"]

    def predict(self, picture: Any, threshold: float | None = None) -> list[dict[str, Any]]:
        """Detections of one picture, best first, clipped to the picture.

        The picture is a path, bytes, a PIL image or a uint8 RGB array.

        `threshold`: least score; None: the one in the model file.
        """
        threshold = self.threshold if threshold is None else threshold
        image = load_image(picture)
        pixels = resize(image, self.preprocessing)
        feed = {
            "images": np.ascontiguousarray(pad(pixels, self.preprocessing).transpose(2, 0, 1))[None],
            "original_sizes": np.array([[image.height, image.width]], dtype=np.int64),
        }
        if self.preprocessing["mode"] == "letterbox":
            feed["valid_sizes"] = np.array([pixels.shape[:2]], dtype=np.int64)
        boxes, scores, labels = (output[0] for output in self.session.run(["boxes", "scores", "labels"], feed))
        check_finite(boxes, scores)
        boxes = boxes.clip(0, np.array([image.width, image.height] * 2, dtype=np.float32))
        order = [int(i) for i in np.argsort(-scores, kind="stable") if scores[i] >= threshold]
        return [
            {
                "label": int(labels[i]),
                "name": self.class_names[labels[i]],
                "score": float(scores[i]),
                "box": [float(value) for value in boxes[i]],
            }
            for i in order
        ]


def check_finite(*outputs: np.ndarray) -> None:
    """Check that a model's outputs are finite; raises ValueError. A threshold would hide NaN."""
    if not all(np.isfinite(values).all() for values in outputs):
        raise ValueError("the model's answer is not finite numbers: damaged weights, or an overflow in half precision")


def load_image(picture: Any) -> Image.Image:
    """An upright 8-bit RGB image from a path, bytes, a file object, a PIL image or a uint8 RGB array."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(np.ascontiguousarray(picture))
    if isinstance(picture, bytes | bytearray | memoryview):
        picture = io.BytesIO(picture)
    return to_rgb(picture if isinstance(picture, Image.Image) else Image.open(picture))


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright 8-bit RGB image.

    Transparency is dropped, deeper pixels are scaled by the file's own depth or range.

    Raises:
        ValueError: floating-point pixels without a finite one.
    """
    declared, low = declared_bits(image), low_bytes(image)
    image.load()
    image = upright(image)
    if low is not None:
        image = join_bytes(image, upright(low))
    elif image.mode == "F" or image.mode.startswith("I"):
        image = grey_to_8_bits(image, declared)
    if image.mode == "RGB":
        return image
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of EXIF that it then reads well enough
            return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block must not cost the image: Pillow raises what it likes here
        return image


def declared_bits(image: Image.Image) -> int:
    """Bits per channel that a TIFF declares; 0: it declares none.

    BitsPerSample below 16, else MaxSampleValue.
    """
    tags = getattr(image, "tag_v2", {})
    bits, largest = (np.atleast_1d(tags.get(tag, 0)).max() for tag in (258, 281))
    return int(bits) if 8 < bits < 16 else int(largest).bit_length()


def fitting_bits(largest: int, declared: int = 0) -> int:
    """The smallest depth that holds `largest` and is not below `declared`: 8, 10, 12, 14, 16 or more bits."""
    bits = max(8, largest.bit_length(), min(declared, 16))
    return bits + bits % 2


def grey_to_8_bits(image: Image.Image, declared: int) -> Image.Image:
    """Integer or floating-point grey as 8-bit grey; `image.info` says how it was scaled."""
    values = np.asarray(image)
    if values.dtype.kind != "f" and (values.dtype.kind == "u" or values.min() >= 0):
        bits = fitting_bits(int(values.max()), declared)
        grey = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
        grey.info["depth"] = f"values of {bits} bits, divided by {2 ** (bits - 8)}"
        return grey
    reals = values.astype(np.float64)
    finite = np.isfinite(reals)
    if not finite.any():
        raise ValueError("not one finite pixel")
    low, high = float(reals.min(where=finite, initial=np.inf)), float(reals.max(where=finite, initial=-np.inf))
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scale = 255 / (high - low) if high > low else 0.0
    reals = np.where(finite, (reals - low) * scale, 0.0)
    grey = Image.fromarray(np.rint(reals).astype(np.uint8))
    grey.info["depth"] = f"values of {low:g} to {high:g}, scaled to 0..255"
    return grey


def low_bytes(image: Image.Image) -> Image.Image | None:
    """The lower bytes of a 16-bit colour file that is not decoded yet; None: it is no such file.

    Pillow decodes 16-bit colours to their upper bytes; with the byte order exchanged it decodes the lower ones.
    """
    swapped = {"16B": "16L", "16L": "16B", "16N": "16B" if np.little_endian else "16L"}
    if not isinstance(image, ImageFile.ImageFile) or image.fp is None or not image.tile:
        return None
    arguments = image.tile[0][3]
    raw = str(arguments[0] if isinstance(arguments, tuple) else arguments)  # such as "RGB;16B"
    if image.mode not in ("RGB", "RGBA", "RGBX") or raw[-3:] not in swapped:
        return None
    position = image.fp.tell()
    image.fp.seek(0)
    again = Image.open(io.BytesIO(image.fp.read()), formats=[str(image.format)])
    image.fp.seek(position)
    assert isinstance(again, ImageFile.ImageFile)
    mode = raw[:-3] + swapped[raw[-3:]]
    tiles: list[Any] = [
        getattr(type(tile), "_make", tuple)((*tile[:3], (mode, *tile[3][1:]) if isinstance(tile[3], tuple) else mode))
        for tile in again.tile  # before Pillow 11 a tile is a plain tuple
    ]
    again.tile = tiles
    again.load()
    return again


def join_bytes(high: Image.Image, low: Image.Image) -> Image.Image:
    """RGB of 8 bits a channel of a 16-bit colour image, from the upper and the lower byte of each channel."""
    upper = np.asarray(high)[..., :3]
    bits = fitting_bits(int(upper.max()) << 8)
    joined = high
    if bits < 16:
        joined = Image.fromarray((upper << (16 - bits)) | (np.asarray(low)[..., :3] >> (bits - 8)))
    joined.info["depth"] = f"values of {bits} bits, divided by {2 ** (bits - 8)}"
    return joined


def resize(image: Image.Image, spec: dict[str, Any]) -> np.ndarray:
    """[h, w, 3] uint8: the image as the model was trained to see it."""
    width, height = image.size
    if spec["mode"] == "fixed":
        new_height, new_width = spec["size"]
    elif spec["mode"] == "letterbox":
        scale = min(spec["size"][0] / height, spec["size"][1] / width)
        new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    else:  # shortest-edge
        short, long, size = min(height, width), max(height, width), spec["size"]
        if spec["max_size"] is not None and long / short * size > spec["max_size"]:
            size = max(1, round(spec["max_size"] * short / long))
        other = max(1, int(size * long / short))
        new_height, new_width = (size, other) if height <= width else (other, size)
    if (new_height, new_width) != (height, width):
        image = image.resize((new_width, new_height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def pad(pixels: np.ndarray, spec: dict[str, Any]) -> np.ndarray:
    """Pad with zeros at the right and bottom to the letterbox's size: [H, W, 3].

    Without a letterbox nothing is padded.
    """
    if spec["mode"] != "letterbox":
        return pixels
    padded = np.zeros((*spec["size"], 3), dtype=np.uint8)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    return padded


def print_detections(predict: Callable[[Path], list[dict[str, Any]]], pictures: list[Path]) -> int:
    """Print the detections of pictures as JSON; a picture that fails gets a line with the reason.

    Returns the exit code.
    """
    found: list[dict[str, Any]] = []
    for picture in pictures:
        try:
            found.append({"file": str(picture), "detections": predict(picture)})
        except Exception as error:  # Pillow's and the runtime's exceptions share no base but this
            found.append({"file": str(picture), "error": one_line(error)})
            sys.stderr.write(f"{picture}: {one_line(error)}\n")
    json.dump(found, sys.stdout, indent=1)
    sys.stdout.write("\n")
    return int(any("error" in one for one in found))


def one_line(error: Exception) -> str:
    """The message of an exception, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Find objects in pictures with an exported model.")
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "model.onnx")
    parser.add_argument("--threshold", type=float, default=None, help="least score; default: the model's")
    arguments = parser.parse_args()
    if arguments.threshold is not None and not 0 <= arguments.threshold <= 1:
        parser.error(f"--threshold {arguments.threshold}: expected a score from 0 to 1")
    try:
        detector = Detector(arguments.model)
    except Exception as error:  # onnxruntime's exceptions share no base but this
        sys.exit(f"{arguments.model}: {one_line(error)}")
    sys.exit(print_detections(lambda picture: detector.predict(picture, arguments.threshold), arguments.pictures))


if __name__ == "__main__":
    main()
