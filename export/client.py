#!/usr/bin/env python3
"""Detect objects with a server of the Open Inference Protocol v2.

Such servers are `siamdetr serve`, NVIDIA Triton and KServe.

    python client.py picture.jpg [more.jpg ...] [--url http://127.0.0.1:8000] [--model siamdetr] [--threshold 0.5]

Needs numpy and Pillow. Prints a JSON list: for every picture its file and its detections (label, name, score, box x0 y0
x1 y1 in pixels), or what is wrong with it; then the exit code is 1. From Python:
`Client("http://127.0.0.1:8000").predict("picture.jpg")`. Classes, preprocessing and threshold come from the server; the
token comes from the environment variable SIAMDETR_SERVE_TOKEN. Requests to this machine's own addresses bypass a proxy
that the environment names.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

HEADER_LENGTH = "Inference-Header-Content-Length"
DTYPES = {"UINT8": "u1", "INT64": "<i8", "FP32": "<f4"}


class Client:
    """A model on a server.

    Args:
        url: of the server, http or https.
        model: its name there.
        token: sent as `Authorization: Bearer`; None: none.
        timeout: seconds for one answer.
    """

    def __init__(self, url: str, model: str = "siamdetr", *, token: str | None = None, timeout: float = 15.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url: got '{url}', expected http://HOST:PORT or https://HOST:PORT")
        self.url, self.model, self.token, self.timeout = url.rstrip("/"), model, token, timeout
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if is_loopback(url) else []))
        config = json.loads(self._ask("config")[0])
        card = json.loads(config["parameters"]["siamdetr"]["string_value"])
        self.class_names: list[str] = card["class_names"]
        self.preprocessing: dict[str, Any] = card["preprocessing"]
        self.threshold: float = card.get("threshold", 0.5)  # servers of siamdetr 0.1.0 name none

    def predict(self, picture: Any, threshold: float | None = None) -> list[dict[str, Any]]:
        """Detections of one picture, best first, clipped to the picture.

        The picture is a path, bytes, a PIL image or a uint8 RGB array.

        `threshold`: least score; None: the one that the server names.
        """
        threshold = self.threshold if threshold is None else threshold
        image = load_image(picture)
        pixels = resize(image, self.preprocessing)
        inputs = {
            "images": np.ascontiguousarray(pad(pixels, self.preprocessing).transpose(2, 0, 1))[None],
            "original_sizes": np.array([[image.height, image.width]], dtype=np.int64),
        }
        if self.preprocessing["mode"] == "letterbox":
            inputs["valid_sizes"] = np.array([pixels.shape[:2]], dtype=np.int64)
        tensors = self.infer(inputs)
        boxes, scores, labels = (tensors[name][0] for name in ("boxes", "scores", "labels"))
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

    def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model's outputs by name: boxes [N, K, 4] in pixels, scores [N, K], labels [N, K]."""
        types = {"images": "UINT8", "original_sizes": "INT64", "valid_sizes": "INT64"}
        raw = {name: tensor.astype(DTYPES[types[name]]).tobytes() for name, tensor in inputs.items()}
        head = {
            "inputs": [
                {
                    "name": name,
                    "datatype": types[name],
                    "shape": list(tensor.shape),
                    "parameters": {"binary_data_size": len(raw[name])},
                }
                for name, tensor in inputs.items()
            ],
            "parameters": {"binary_data_output": True},
        }
        text = json.dumps(head).encode()
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(text))}
        body, length = self._ask("infer", text + b"".join(raw.values()), headers)
        start = len(body) if length is None else int(length)
        outputs: dict[str, np.ndarray] = {}
        for entry in json.loads(body[:start])["outputs"]:
            dtype = np.dtype(DTYPES[entry["datatype"]])
            size = entry.get("parameters", {}).get("binary_data_size")
            if size is None:
                values = np.array(entry["data"], dtype=dtype)
            else:
                values, start = np.frombuffer(body[start : start + size], dtype=dtype), start + size
            outputs[entry["name"]] = values.reshape(entry["shape"])
        return outputs

    def _ask(
        self, what: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[bytes, str | None]:
        """The body of a response, and the length of its JSON if raw tensors follow."""
        request = urllib.request.Request(f"{self.url}/v2/models/{self.model}/{what}", data=body, headers=headers or {})
        if self.token is not None:
            request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with self._opener.open(request, timeout=self.timeout) as answer:
                return answer.read(), answer.headers.get(HEADER_LENGTH)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(2000).decode(errors="replace")
            raise RuntimeError(f"{self.url}: {error.code} {error.reason}: {text}") from None


def is_loopback(url: str) -> bool:
    """Whether an address belongs to this machine."""
    host = urllib.parse.urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


# The functions below are those of `infer.py` in every bundle, here once more so that this file stands alone.
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


def check_finite(*outputs: np.ndarray) -> None:
    """Check that a model's outputs are finite; raises ValueError. A threshold would hide NaN."""
    if not all(np.isfinite(values).all() for values in outputs):
        raise ValueError("the model's answer is not finite numbers: damaged weights, or an overflow in half precision")


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
    parser = argparse.ArgumentParser(description="Find objects in pictures with a server.")
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="siamdetr")
    parser.add_argument("--threshold", type=float, default=None, help="least score; default: the model's")
    arguments = parser.parse_args()
    if arguments.threshold is not None and not 0 <= arguments.threshold <= 1:
        parser.error(f"--threshold {arguments.threshold}: expected a score from 0 to 1")
    try:
        client = Client(arguments.url, arguments.model, token=os.environ.get("SIAMDETR_SERVE_TOKEN"))
    except Exception as error:  # no server there, or one of another kind
        sys.exit(f"{arguments.url}: {one_line(error)}")
    sys.exit(print_detections(lambda picture: client.predict(picture, arguments.threshold), arguments.pictures))


if __name__ == "__main__":
    main()
