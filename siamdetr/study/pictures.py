"""Pictures of a pretrained detector's boxes and attention before any finetuning (the paper's Fig. 5)."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import supervision as sv
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from siamdetr.api import SiamDETR
from siamdetr.data.index import DetectionIndex
from siamdetr.images.open import open_untrusted
from siamdetr.images.preprocessing import preprocess
from siamdetr.inference.pytorch import evaluating, normalize_prepared
from siamdetr.models.attention import record_attention
from siamdetr.system.atomic_file import atomic_write

WIDTH = 420  # pixels of a picture
MOST_BOXES = 8
TRUTH, BOXES, ATTENTION = "truth", "boxes", "attention"
_TRUTH_COLOUR, _FOUND_COLOUR = "#ffffff", "#ffd23f"


def save_qualitative(model: SiamDETR, index: DetectionIndex, folder: Path) -> None:
    """Write `I-truth.jpg`, `I-boxes.jpg` and `I-attention.jpg` of each image.

    The number of boxes is that of the objects, at most 8, best first. The attention is that of their queries in the
    last decoder layer, mean over heads and maximum over queries.

    Args:
        model: of one class, "object".
        index: images with their boxes.
        folder: to write into.
    """
    for i in range(len(index)):
        image = open_untrusted(index.path(i))
        count = int(np.clip((~index.crowd[index.box_slice(i)]).sum(), 1, MOST_BOXES))
        found = model.predict(image, 0.0)
        assert isinstance(found, sv.Detections)
        pictures = {
            TRUTH: _outlined(image, index.boxes_of(i), _TRUTH_COLOUR),
            BOXES: _outlined(image, np.asarray(found.xyxy[:count], np.float32), _FOUND_COLOUR),
            ATTENTION: _heated(image, _attention(model, image, count)),
        }
        for name, picture in pictures.items():
            _save(picture, folder / f"{i}-{name}.jpg")


def _attention(model: SiamDETR, image: Image.Image, count: int) -> NDArray[np.float32]:
    """[h, w] in 0..1: attention of the queries of the best boxes."""
    detector = model.detector
    images, padding = normalize_prepared(preprocess([image], model.preprocessing), model.preprocessing, model.device)
    with evaluating(detector), torch.inference_mode(), record_attention(detector) as maps:
        logits = detector(images, padding).logits[-1, 0].float()  # [Q, 1 or 2]
    best = logits.softmax(-1)[:, 0] if detector.settings.classifier == "softmax" else logits[:, 0]
    chosen = maps[-1][0].float().mean(0)[best.topk(min(count, len(best))).indices]  # [count, h, w]
    chosen = chosen / chosen.amax((1, 2), keepdim=True).clamp(min=1e-12)
    return np.asarray(chosen.amax(0).cpu().numpy(), np.float32)


def _outlined(image: Image.Image, boxes: NDArray[np.float32], colour: str) -> Image.Image:
    picture, scale = _resized(image)
    pen = ImageDraw.Draw(picture)
    for x0, y0, x1, y1 in boxes * scale:
        pen.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline="#101418", width=4)
        pen.rectangle((x0, y0, x1, y1), outline=colour, width=2)
    return picture


def _heated(image: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """The picture in grey, with the attention in colour."""
    picture, _ = _resized(image)
    heat = np.asarray(Image.fromarray(heat).resize(picture.size, Image.Resampling.BICUBIC)).clip(0, 1)
    colours = matplotlib.colormaps["inferno"](heat)[..., :3] * 255
    grey = np.asarray(picture.convert("L"), np.float32)[..., None]
    weight = (0.25 + 0.65 * heat)[..., None]
    return Image.fromarray(((1 - weight) * grey + weight * colours).clip(0, 255).astype(np.uint8))


def _resized(image: Image.Image) -> tuple[Image.Image, float]:
    scale = WIDTH / image.width
    return image.convert("RGB").resize((WIDTH, max(1, round(image.height * scale))), Image.Resampling.BICUBIC), scale


def _save(picture: Image.Image, path: Path) -> None:
    atomic_write(path, lambda file: picture.save(file, "JPEG", quality=85))
