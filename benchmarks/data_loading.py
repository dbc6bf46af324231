"""Images per second of one loading process: ours against Pillow and torchvision on float tensors.

    python benchmarks/data_loading.py [--size 320] [--regions 10] [--crop 128] [--images 40] [--repeat 3]

Both ways read the same JPEGs and do the same work: finetuning with DETR's augmentation; pretraining with two views and
their region crops, each with its own colour jitter, grey and blur. The plain way resizes the whole image first, then
cuts, and computes in float.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from siamdetr.data.dataset import DetectionDataset
from siamdetr.data.index import DetectionIndex
from siamdetr.data.readers.recognise import open_dataset
from siamdetr.data.synthetic.shapes import write_synthetic
from siamdetr.data.transforms import FinetuneTransform
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.images.randomness import sample_random
from siamdetr.pretext.datasets import SiameseDataset
from siamdetr.pretext.views import choose_regions, sample_geometry
from siamdetr.proposals.compute import compute_proposals
from siamdetr.settings.pretext import SiameseSettings


class PlainFinetune:
    """DETR's recipe out of torchvision's parts, on float images."""

    def __init__(self, index: DetectionIndex, size: int) -> None:
        self.index = index
        scales, longest = [round(size * k / 25) for k in range(15, 26)], round(size * 5 / 3)
        many_scales = v2.RandomShortestSize(scales, longest)
        crop = v2.Compose(
            [
                v2.RandomShortestSize([size // 2, size * 5 // 8, size * 3 // 4]),
                v2.RandomCrop(round(0.6 * size), pad_if_needed=True),
                v2.RandomShortestSize(scales, longest),
            ]
        )
        self.transform = v2.Compose(
            [
                v2.ToDtype(torch.float32, scale=True),
                v2.RandomHorizontalFlip(),
                v2.RandomChoice([many_scales, crop]),
                v2.SanitizeBoundingBoxes(),
            ]
        )

    def __call__(self, i: int) -> None:
        with Image.open(self.index.path(i)) as image:
            pixels = tv_tensors.Image(functional.pil_to_tensor(image.convert("RGB")))
        height, width = pixels.shape[-2:]
        boxes = tv_tensors.BoundingBoxes(self.index.boxes_of(i), format="XYXY", canvas_size=(height, width))
        self.transform({"image": pixels, "boxes": boxes, "labels": torch.from_numpy(self.index.labels_of(i))})


class PlainViews:
    """Resize, flip, cut, jitter: one torchvision call after the other, on float images."""

    def __init__(self, index: DetectionIndex, settings: SiameseSettings) -> None:
        self.index, self.settings = index, settings
        self.photometric = v2.Compose(
            [
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=0.5),
            ]
        )

    def __call__(self, i: int) -> None:
        rng, settings = sample_random(0, 0, i), self.settings
        with Image.open(self.index.path(i)) as image:
            pixels = functional.pil_to_tensor(image.convert("RGB"))
        geometry = sample_geometry((pixels.shape[1], pixels.shape[2]), settings, rng)
        regions = choose_regions(None, geometry.intersection, settings.num_regions, rng)
        resized = functional.resize(functional.to_dtype(pixels, torch.float32, scale=True), list(geometry.frame))
        resized = functional.horizontal_flip(resized) if geometry.flip else resized
        for x0, y0, x1, y1 in geometry.views:
            view = _cut(resized, (x0, y0, x1, y1), geometry.size)
            scale_x, scale_y = geometry.size[1] / (x1 - x0), geometry.size[0] / (y1 - y0)
            for box in regions.tolist():
                inside = (
                    (box[0] - x0) * scale_x,
                    (box[1] - y0) * scale_y,
                    (box[2] - x0) * scale_x,
                    (box[3] - y0) * scale_y,
                )
                self.photometric(_cut(view, inside, (settings.crop_size, settings.crop_size)))
            self.photometric(view)


def _cut(image: Tensor, box: tuple[float, float, float, float], size: tuple[int, int]) -> Tensor:
    left, top = int(box[0]), int(box[1])
    height, width = max(1, int(box[3]) - top), max(1, int(box[2]) - left)
    return functional.resized_crop(image, top, left, height, width, list(size), antialias=True)


def _rate(load: Callable[[int], object], images: int) -> float:
    started = time.perf_counter()
    for i in range(images):
        load(i)
    return images / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--regions", type=int, default=10)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker process
    settings = SiameseSettings(size=arguments.size, num_regions=arguments.regions, crop_size=arguments.crop)
    with tempfile.TemporaryDirectory() as folder:
        root = write_synthetic(
            Path(folder), num_unlabelled=0, num_train=arguments.images, num_val=0, size=arguments.size * 5 // 4
        )
        index = open_dataset(root, split="train")
        store = compute_proposals(index, root / "proposals.arrow")
        finetune = DetectionDataset(index, FinetuneTransform(PreprocessingSpec.from_size(arguments.size)))
        views = SiameseDataset(index, store, settings)
        pairs: dict[str, tuple[Callable[[int], object], Callable[[int], object]]] = {
            "finetune": (lambda i: finetune[0, i], PlainFinetune(index, arguments.size)),
            "siamese": (lambda i: views[0, i], PlainViews(index, settings)),
        }
        print(f"one process, size {arguments.size}, {arguments.regions} regions of {arguments.crop} pixels; images/s, median of {arguments.repeat}")  # fmt: skip
        print(f"{'':10}{'ours':>8}{'plain':>8}{'ratio':>8}")
        for name, ways in pairs.items():
            rates: tuple[list[float], list[float]] = ([], [])
            for _ in range(arguments.repeat):
                for way, measured in zip(ways, rates, strict=True):
                    measured.append(_rate(way, arguments.images))
            ours, plain = (statistics.median(measured) for measured in rates)
            print(f"{name:10}{ours:8.1f}{plain:8.1f}{ours / plain:7.1f}x")


if __name__ == "__main__":
    main()
