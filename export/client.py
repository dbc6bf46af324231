#!/usr/bin/env python3
"""Find objects in pictures with a server of the Open Inference Protocol v2: `siamdetr serve`, NVIDIA Triton, KServe.

    python client.py picture.jpg [more.jpg ...] [--url http://127.0.0.1:8000] [--model siamdetr] [--threshold 0.5]

Needs numpy and Pillow. Prints a JSON list: for every picture its file and its detections (label, name, score, box x0 y0 x1 y1
in pixels). From Python: `Client("http://127.0.0.1:8000").predict("picture.jpg")`. Classes and preprocessing come from the
server; a token from the environment variable SIAMDETR_SERVE_TOKEN.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

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
        config = json.loads(self._ask("config")[0])
        card = json.loads(config["parameters"]["siamdetr"]["string_value"])
        self.class_names: list[str] = card["class_names"]
        self.preprocessing: dict[str, Any] = card["preprocessing"]

    def predict(self, picture: Any, threshold: float = 0.5) -> list[dict[str, Any]]:
        """Detections of one picture (path, PIL image or uint8 RGB array), best first, cut at the picture's edges."""
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
        """The body of an answer, and the length of its JSON where raw tensors follow."""
        request = urllib.request.Request(f"{self.url}/v2/models/{self.model}/{what}", data=body, headers=headers or {})
        if self.token is not None:
            request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return answer.read(), answer.headers.get(HEADER_LENGTH)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(2000).decode(errors="replace")
            raise RuntimeError(f"{self.url}: {error.code} {error.reason}: {text}") from None


# The three functions below are those of `infer.py` in every bundle, here once more so that this file stands alone.
def load_image(picture: Any) -> Image.Image:
    """An upright 8-bit RGB image; transparency is dropped, 16-bit grey keeps its upper 8 bits."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(np.ascontiguousarray(picture))
    image = picture if isinstance(picture, Image.Image) else Image.open(picture)
    image.load()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block must not cost the image
        pass
    if image.mode == "F":
        raise ValueError(f"{picture}: floating-point pixels, whose range is not known; convert it to 8 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        values = values if values.dtype.itemsize == 2 else values.clip(0, 65535)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


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
    """[H, W, 3]: with zeros at the right and below, up to the letterbox's size; without a letterbox as it is."""
    if spec["mode"] != "letterbox":
        return pixels
    padded = np.zeros((*spec["size"], 3), dtype=np.uint8)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    return padded


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Find objects in pictures with a server.")
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="siamdetr")
    parser.add_argument("--threshold", type=float, default=0.5)
    arguments = parser.parse_args()
    client = Client(arguments.url, arguments.model, token=os.environ.get("SIAMDETR_SERVE_TOKEN"))
    found = [
        {"file": str(picture), "detections": client.predict(picture, arguments.threshold)}
        for picture in arguments.pictures
    ]
    json.dump(found, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
