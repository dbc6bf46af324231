#!/usr/bin/env python3
"""Find objects in pictures with an exported model. Needs numpy, Pillow and onnxruntime; neither PyTorch nor siamdetr.

    python infer.py picture.jpg [more.jpg ...] [--model model.onnx] [--threshold 0.5]

Prints a JSON list: for every picture its file and its detections (label, name, score, box x0 y0 x1 y1 in pixels). To use it
from Python: `Detector("model.onnx").predict("picture.jpg")`. It reads classes and preprocessing from the model file.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


class Detector:
    """An exported model on the CPU, or wherever `providers` say."""

    def __init__(self, model: str | Path, providers: tuple[str, ...] = ("CPUExecutionProvider",)) -> None:
        self.session = onnxruntime.InferenceSession(str(model), providers=list(providers))
        actual = self.session.get_providers()
        if providers[0] not in actual:  # onnxruntime falls back in silence
            raise RuntimeError(f"{model}: asked for {providers[0]}, onnxruntime fell back to {actual[0]}")
        card = json.loads(self.session.get_modelmeta().custom_metadata_map["siamdetr"])
        self.class_names: list[str] = card["class_names"]
        self.threshold: float = card["threshold"]
        self.preprocessing: dict[str, Any] = card["preprocessing"]

    def predict(self, picture: Any, threshold: float | None = None) -> list[dict[str, Any]]:
        """Detections of one picture (path, PIL image or uint8 RGB array), best first, cut at the picture's edges.

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
    parser = argparse.ArgumentParser(description="Find objects in pictures with an exported model.")
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "model.onnx")
    parser.add_argument("--threshold", type=float, default=None, help="least score; default: the model's")
    arguments = parser.parse_args()
    detector = Detector(arguments.model)
    found = [
        {"file": str(picture), "detections": detector.predict(picture, arguments.threshold)}
        for picture in arguments.pictures
    ]
    json.dump(found, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
