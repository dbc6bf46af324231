"""A tiny labelled data set and tiny settings, on which training runs in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from siamdetr.pretext.run_settings import PretrainSettings
from siamdetr.settings.training import FinetuneSettings

SIDE = 64

DETECTOR: dict[str, Any] = {
    "backbone": "test_resnet.r160_in1k",
    "num_queries": 10,
    "dim": 32,
    "heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "feedforward": 32,
}


METHODS: dict[str, Any] = {
    "siamese": {"num_regions": 5, "size": SIDE, "crop_size": 32},
    "updetr": {"num_regions": 5, "size": SIDE, "crop_size": 32},
    "detreg": {"num_regions": 8, "size": SIDE, "crop_size": 32, "embedding": "last"},
}


def write_data(root: Path, *, train: int = 8, val: int = 3, empty: tuple[int, ...] = ()) -> Path:
    """Squares of two colours (classes "red" and "blue") on noise, in COCO's layout.

    Images in `empty` have none.
    """
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        images, annotations = [], []
        for i in range(1, count + 1):
            pixels = rng.integers(80, 160, (SIDE, SIDE, 3), dtype=np.uint8)
            for category in (1, 2) if not (split == "train" and i in empty) else ():
                x, y = rng.integers(2, 34, 2).tolist()
                side = int(rng.integers(12, 26))
                pixels[y : y + side, x : x + side] = (230, 20, 20) if category == 1 else (20, 20, 230)
                box = [float(x), float(y), float(side), float(side)]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": i, "category_id": category, "bbox": box, "iscrowd": 0}
                    | {"area": float(side * side)}
                )
            path = root / split / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            images.append({"id": i, "file_name": path.name, "width": SIDE, "height": SIDE})
        categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
        file = root / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root


def finetune_settings(data: Path, output: Path, **changes: Any) -> FinetuneSettings:
    """A few steps on the tiny data set; `changes` are top-level settings."""
    values: dict[str, Any] = {
        "data": {"paths": [str(data)]},
        "detector": DETECTOR,
        "backbone_weights": "none",
        "images": {"size": SIDE, "max_size": SIDE, "augment": "flip"},
        "steps": 6,
        "batch_size": 2,
        "workers": 0,
        "log_every": 1,
        "checkpoint_every": 3,
        "val_every": 100,
        "device": "cpu",
        "output": str(output),
    }
    return FinetuneSettings.model_validate(values | changes)


def pretrain_settings(data: Path, output: Path, **changes: Any) -> PretrainSettings:
    """A few steps of pretraining on the tiny data set; `method` chooses how, by default Siamese DETR."""
    values: dict[str, Any] = {
        "data": {"paths": [str(data)]},
        "detector": DETECTOR,
        **METHODS,
        "backbone_weights": "none",
        "steps": 4,
        "batch_size": 2,
        "workers": 0,
        "log_every": 1,
        "checkpoint_every": 2,
        "device": "cpu",
        "output": str(output),
    }
    return PretrainSettings.model_validate(values | changes)
