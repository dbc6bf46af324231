"""One step of Siamese pretraining (forward, backward, AdamW): ours beside a plain sequential implementation.

Plain, written out below with the same modules: the views go through the network one after the other, BatchNorm is not folded and
images are contiguous, the feature head answers for every query, every decoder layer of every view is matched on its own
(one transfer each), and AdamW loops over parameters. Each runs in processes of its own, in turn, so that peak memory is its own.

    python benchmarks/pretrain_step.py --batch 2 --size 320 --variant conditional --backbone resnet50 --precision fp32
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from siamdetr.config import DetectorSettings, SiameseSettings
from siamdetr.data.targets import ViewBatch
from siamdetr.losses import DetectionCriterion, weighted_sum
from siamdetr.models.detector import Detector, Outputs
from siamdetr.pretext.common import condition_queries, jitter_boxes, object_targets, pretext_settings, region_features
from siamdetr.pretext.siamese import SiameseDETR

NUM_REGIONS = 10
CROP_SIZE = 128


def main() -> None:
    """Run both in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2, help="samples; each is two views")
    parser.add_argument("--size", type=int, default=320, help="side of the views, pixels")
    parser.add_argument("--variant", default="conditional", choices=["vanilla", "conditional"])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="of ours; the plain one is fp32")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--steps", type=int, default=3, help="timed steps a process, after one that is not timed")
    parser.add_argument("--rounds", type=int, default=2, help="processes of either kind")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=["plain", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options)))
        return
    runs: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    for _ in range(options.rounds):
        for kind in runs:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", kind]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs[kind].append(json.loads(answer.splitlines()[-1]))
    report(
        options, {kind: {key: min(run[key] for run in of_kind) for key in of_kind[0]} for kind, of_kind in runs.items()}
    )


def report(options: argparse.Namespace, best: dict[str, dict[str, float]]) -> None:
    """The table, and what half precision is worth on this processor."""
    print(
        f"{options.variant} {options.backbone}, batch {options.batch} x 2 views of {options.size}x{options.size}, "
        f"{NUM_REGIONS} crops of {CROP_SIZE}x{CROP_SIZE}, {options.queries} queries, on {options.device}"
    )
    print(f"{'':24}{'s/step':>9}{'CPU s/step':>12}{'peak MB':>10}")
    for kind, name in (("plain", "plain, fp32"), ("ours", f"ours, {options.precision}")):
        row = best[kind]
        print(f"{name:24}{row['seconds']:9.3f}{row['cpu_seconds']:12.3f}{row['megabytes']:10.0f}")
    ratios = [best["plain"][key] / best["ours"][key] for key in ("seconds", "cpu_seconds", "megabytes")]
    print(f"{'plain / ours':24}{ratios[0]:8.2f}x{ratios[1]:11.2f}x{ratios[2]:9.2f}x")
    if options.precision == "bf16" and options.device == "cpu":
        print(f"a bf16 matrix product here takes 1/{matmul_speedup():.2f} of the time of an fp32 one")


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Fastest step in seconds (wall and CPU), and peak memory of this process (of the GPU where there is one)."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    settings = DetectorSettings(variant=options.variant, backbone=options.backbone, num_queries=options.queries)
    with device:
        pretext = SiameseDETR(Detector(pretext_settings(settings)), SiameseSettings(num_regions=NUM_REGIONS))
        batch = make_batch(options.batch, options.size)
    ours = options.only == "ours"
    parameters = [parameter for parameter in pretext.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-4, fused=ours, foreach=False)
    forward: Callable[[], dict[str, Tensor]] = (
        (lambda: pretext(batch)) if ours else (lambda: plain_losses(pretext, batch))
    )
    half = ours and options.precision == "bf16"
    wall, cpu = [], []
    for _ in range(options.steps + 1):
        start, start_cpu = time.perf_counter(), time.process_time()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            total = weighted_sum(forward(), pretext.loss_weights)
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_resident_bytes()
    return {"seconds": min(wall[1:]), "cpu_seconds": min(cpu[1:]), "megabytes": peak / 1e6}


def make_batch(samples: int, size: int) -> ViewBatch:
    """Normalised noise with regions of a quarter to a half of the side."""
    views = 2 * samples
    sides = torch.rand(views, NUM_REGIONS, 2) * 0.25 + 0.25
    return ViewBatch(
        images=torch.randn(views, 3, size, size),
        padding=torch.zeros(views, size, size, dtype=torch.bool),
        boxes=torch.cat([torch.rand(views, NUM_REGIONS, 2) * 0.4 + 0.3, sides], dim=-1),
        sizes=torch.full((views, 2), size),
        crops=torch.randn(views, NUM_REGIONS, 3, CROP_SIZE, CROP_SIZE),
    )


def plain_losses(pretext: SiameseDETR, batch: ViewBatch) -> dict[str, Tensor]:
    """The same losses, one view after the other and one layer after the other."""
    detector = pretext.detector
    halves = [slice(0, len(batch.images) // 2), slice(len(batch.images) // 2, None)]
    memories, regions, crops = [], [], []
    for half in halves:
        with torch.no_grad():
            features = detector.backbone(batch.images[half])
            crops.append(detector.backbone(batch.crops[half].flatten(0, 1)).mean((2, 3)))
        boxes = jitter_boxes(batch.boxes[half], pretext.box_jitter)
        pooled = region_features(features, boxes, batch.sizes[half], detector.backbone.stride)
        regions.append(pretext.region_projection(pooled))
        memories.append(detector.encode_features(features, batch.padding[half]))
    sums: dict[str, Tensor] = {}
    for view in (0, 1):
        queries = condition_queries(detector.queries(len(regions[view])), regions[view])
        outputs = detector.decode(queries, memories[1 - view])
        for name, value in plain_view(pretext, outputs, batch.boxes[halves[1 - view]], crops[view]).items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value / 2
    means = [memory.tokens.mean(1) for memory in memories]
    if pretext.global_head is not None:
        sums["loss_global"] = pretext.global_head(means[0], means[1])
    return sums


def plain_view(pretext: SiameseDETR, outputs: Outputs, boxes: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Losses of one direction: every layer is matched on its own, and every query answers with a feature."""
    assert pretext.feature_head is not None
    targets = object_targets(boxes)
    losses: dict[str, Tensor] = {}
    features = pretext.feature_head(outputs.hidden)  # [L, B, Q, F]
    last = len(outputs.logits) - 1
    criterion = DetectionCriterion(pretext.settings.losses, "softmax", pretext.criterion.num_classes, num_layers=1)
    for layer in range(last + 1):
        one = Outputs(outputs.logits[layer, None], outputs.boxes[layer, None], outputs.hidden[layer, None])
        values, matches = criterion.losses_and_matches(one, targets, float(len(wanted)))
        found = features[layer, matches.image, matches.query]
        difference = F.normalize(found, dim=-1) - F.normalize(wanted[matches.target], dim=-1)
        values["loss_region"] = difference.square().sum() / len(wanted)
        suffix = "" if layer == last else f"_{layer}"
        losses |= {name + suffix: value for name, value in values.items() if name.startswith("loss")}
    return losses


def matmul_speedup() -> float:
    """How many times faster a large bf16 matrix product is than an fp32 one; below 1 the processor only emulates."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(1024, 1024).to(dtype)
        times = []
        for _ in range(10):
            start = time.perf_counter()
            torch.mm(matrix, matrix)
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
    return seconds[0] / seconds[1]


def peak_resident_bytes() -> int:
    """Peak resident memory of this process (Linux counts kilobytes, macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
