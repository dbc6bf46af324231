"""Matching all decoder layers in one transfer, against one transfer per layer.

python benchmarks/matcher.py --batch 16 --queries 300 --classes 80 --boxes 20
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from siamdetr.boxes import cxcywh_to_xyxy, pairwise_giou
from siamdetr.models.criterion.matcher import FOCAL_LOG_EPS, match
from siamdetr.settings.detector import LossSettings
from siamdetr.structures.targets import Targets

Pairs = set[tuple[int, int, int, int]]  # (layer, image, query, target)


def main() -> None:
    """Time both on the same predictions and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--boxes", type=int, default=10, help="an image")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device, settings = torch.device(options.device), LossSettings()
    torch.manual_seed(0)
    shape = (options.layers, options.batch, options.queries)
    logits, boxes = torch.randn(*shape, options.classes), torch.rand(*shape, 4) * 0.4 + 0.2
    targets = Targets.from_lists(
        [torch.rand(options.boxes, 4) * 0.4 + 0.2 for _ in range(options.batch)],
        [torch.randint(options.classes, (options.boxes,)) for _ in range(options.batch)],
    ).to(device)
    logits, boxes = logits.to(device), boxes.to(device)

    def ours() -> Pairs:
        found = match(logits, boxes, targets, settings, "focal")
        table = torch.stack([found.layer, found.image, found.query, found.target], 1).cpu()
        return {(a, b, c, d) for a, b, c, d in table.tolist()}

    def plain() -> Pairs:
        return per_layer(logits, boxes, targets, settings)

    same = ours() == plain()
    seconds = {name: fastest(call, options.repeats, device) for name, call in (("per layer", plain), ("ours", ours))}
    print(
        f"{options.layers} layers, batch {options.batch}, {options.queries} queries, {options.classes} classes, "
        f"{options.boxes} boxes an image, on {device}; same matches: {same}"
    )
    for name, value in seconds.items():
        transfers = 1 if name == "ours" else options.layers
        print(f"{name:10}{1e3 * value:9.1f} ms   {transfers} transfers to the host")
    print(f"per layer / ours: {seconds['per layer'] / seconds['ours']:.2f}x")
    if device.type == "cpu":
        print("on a CPU nothing is transferred: the ratio is that of the costs which are not computed")


def per_layer(logits: Tensor, boxes: Tensor, targets: Targets, settings: LossSettings) -> Pairs:
    """Match layer by layer, every prediction of the batch with every box of the batch, as is usual."""
    pairs: Pairs = set()
    alpha, gamma = settings.matcher_alpha, settings.focal_gamma
    for layer in range(logits.shape[0]):
        images, queries = logits.shape[1:3]
        probability, predicted = logits[layer].flatten(0, 1).sigmoid(), boxes[layer].flatten(0, 1)
        negative = (1 - alpha) * probability**gamma * -(1 - probability + FOCAL_LOG_EPS).log()
        positive = alpha * (1 - probability) ** gamma * -(probability + FOCAL_LOG_EPS).log()
        cost = settings.cost_class * (positive[:, targets.labels] - negative[:, targets.labels])
        cost = cost + settings.cost_bbox * torch.cdist(predicted, targets.boxes, p=1)
        cost = cost - settings.cost_giou * pairwise_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(targets.boxes))
        host = cost.view(images, queries, -1).cpu()
        start = 0
        for image, count in enumerate(targets.counts):
            rows, columns = linear_sum_assignment(host[image, :, start : start + count])
            pairs |= {(layer, image, int(q), int(t) + start) for q, t in zip(rows, columns, strict=True)}
            start += count
    return pairs


def fastest(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds of the fastest of some calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
