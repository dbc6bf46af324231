"""One step of pretraining (forward, backward, AdamW) against a plain sequential implementation.

By default of Siamese DETR.

Plain, written out below with the same modules: the views go through the network one after the other, BatchNorm is not
folded and images are contiguous, the feature head answers for every query, every decoder layer of every view is matched
on its own (one transfer each), AdamW loops over parameters, deformable attention samples level by level and keeps its
samples, dropout is PyTorch's, freed memory goes back to the system, and subnormal numbers are multiplied as they are.
Each runs in processes of its own, in turn, so that peak memory is its own.

    python benchmarks/pretrain_step.py --batch 2 --size 320 --variant conditional --backbone resnet50 --precision fp32
    python benchmarks/pretrain_step.py --method updetr    # or detreg: one view of each sample
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from detectors import as_in_training
from torch import Tensor

from siamdetr.models import attention, dropout
from siamdetr.models.backbone.pyramid import as_levels
from siamdetr.models.criterion.layer_losses import weighted_sum
from siamdetr.models.criterion.losses import DetectionCriterion
from siamdetr.models.deformable.attention import DeformableAttention
from siamdetr.models.detector import Detector, Outputs
from siamdetr.pretext.batches import RegionBatch, ViewBatch
from siamdetr.pretext.common import Pretext, jitter_boxes, pool_memory, pretext_settings, region_features
from siamdetr.pretext.detreg import DETReg
from siamdetr.pretext.prompt import condition_queries, group_mask
from siamdetr.pretext.registry import PRETEXTS
from siamdetr.pretext.siamese import SiameseDETR
from siamdetr.pretext.updetr import UPDETR
from siamdetr.settings.detector import DetectorSettings
from siamdetr.settings.pretext import DETRegSettings, PretextSettings, SiameseSettings, UPDETRSettings
from siamdetr.structures.targets import Targets, region_targets

NUM_REGIONS = 10
CROP_SIZE = 128
SETTINGS: dict[str, PretextSettings] = {
    "siamese": SiameseSettings(num_regions=NUM_REGIONS),
    "updetr": UPDETRSettings(num_regions=NUM_REGIONS, mask_ratio=0.0),
    "detreg": DETRegSettings(num_regions=NUM_REGIONS),
}


def main() -> None:
    """Run both in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="siamese", choices=list(PRETEXTS))
    parser.add_argument("--batch", type=int, default=2, help="samples; of siamese each is two views")
    parser.add_argument("--size", type=int, default=320, help="side of the views, pixels")
    parser.add_argument("--variant", default="conditional", choices=["vanilla", "conditional", "deformable"])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="of ours; the plain one is fp32")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--steps", type=int, default=3, help="timed steps a process, after one that is not timed")
    parser.add_argument("--rounds", type=int, default=2, help="processes of either kind")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=["plain", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        with as_in_training() if options.only == "ours" else nullcontext():
            print(json.dumps(measure(options)))
        return
    runs: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    for _ in range(options.rounds):
        for kind in runs:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", kind]
            answer = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if answer.returncode:  # it has said why
                sys.exit(answer.returncode)
            runs[kind].append(json.loads(answer.stdout.splitlines()[-1]))
    report(
        options, {kind: {key: min(run[key] for run in of_kind) for key in of_kind[0]} for kind, of_kind in runs.items()}
    )


def report(options: argparse.Namespace, best: dict[str, dict[str, float]]) -> None:
    """The table, and what half precision is worth on this processor."""
    views = "2 views" if options.method == "siamese" else "1 view"
    print(
        f"{options.method}: {options.variant} {options.backbone}, batch {options.batch} x {views} of {options.size}x{options.size}, "
        f"{NUM_REGIONS} crops of {CROP_SIZE}x{CROP_SIZE}, {options.queries} queries, on {options.device}"
    )
    print(f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'':24}{'s/step':>9}{'CPU s/step':>12}{'peak MB':>10}")
    for kind, name in (("plain", "plain, fp32"), ("ours", f"ours, {options.precision}")):
        row = best[kind]
        print(f"{name:24}{row['seconds']:9.3f}{row['cpu_seconds']:12.3f}{row['megabytes']:10.0f}")
    ratios = [best["plain"][key] / best["ours"][key] for key in ("seconds", "cpu_seconds", "megabytes")]
    print(f"{'plain / ours':24}{ratios[0]:8.2f}x{ratios[1]:11.2f}x{ratios[2]:9.2f}x")
    if options.precision == "bf16" and options.device == "cpu":
        print(f"a bf16 matrix product here takes 1/{matmul_speedup():.2f} of the time of an fp32 one")


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Fastest step in seconds (wall and CPU), and the peak memory of this process or of the GPU."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    ours = options.only == "ours"
    settings = DetectorSettings(
        variant=options.variant,
        backbone=options.backbone,
        num_queries=options.queries,
        levels=4 if options.variant == "deformable" else 1,
    )
    with device:
        pretext = PRETEXTS[options.method].build(Detector(pretext_settings(settings)), SETTINGS[options.method])
        batch = make_batch(options.batch, options.size)
        if options.method != "siamese":
            batch = first_views(batch)
    if not ours:
        for used in (dropout, attention):
            used.draws_here = lambda x: False  # type: ignore[attr-defined]
        for module in pretext.modules():
            if isinstance(module, DeformableAttention):
                module.sampling = "reference"
    parameters = [parameter for parameter in pretext.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-4, fused=ours, foreach=False)
    forward: Callable[[], dict[str, Tensor]] = (
        (lambda: pretext(batch)) if ours else (lambda: PLAIN[options.method](pretext, batch))
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


def first_views(batch: ViewBatch) -> RegionBatch:
    """The first view of every sample, as the methods of one view take it."""
    samples = len(batch.images) // 2
    return RegionBatch(
        images=batch.images[:samples],
        padding=batch.padding[:samples],
        targets=region_targets(batch.boxes[:samples].flatten(0, 1), [batch.boxes.shape[1]] * samples),
        crops=batch.crops[:samples].flatten(0, 1),
    )


def plain_losses(pretext: SiameseDETR, batch: ViewBatch) -> dict[str, Tensor]:
    """The same losses, one view after the other and one layer after the other."""
    detector = pretext.detector
    halves = [slice(0, len(batch.images) // 2), slice(len(batch.images) // 2, None)]
    memories, regions, crops = [], [], []
    for half in halves:
        with torch.no_grad():
            features = detector.backbone(batch.images[half])
            seen = as_levels(detector.backbone(batch.crops[half].flatten(0, 1)))
            crops.append(torch.cat([level.mean((2, 3)) for level in seen], dim=-1))
        boxes = jitter_boxes(batch.boxes[half], pretext.box_jitter)
        pooled = region_features(features, boxes, batch.sizes[half], detector.backbone.strides)
        regions.append(pretext.region_projection(pooled))
        memories.append(detector.encode_features(features, batch.padding[half]))
    sums: dict[str, Tensor] = {}
    for view in (0, 1):
        queries = condition_queries(detector.queries(len(regions[view])), regions[view])
        outputs = detector.decode(queries, memories[1 - view])
        for name, value in plain_view(pretext, outputs, batch.boxes[halves[1 - view]], crops[view]).items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value / 2
    means = [pool_memory(memory) for memory in memories]
    if pretext.global_head is not None:
        sums["loss_global"] = pretext.global_head(means[0], means[1])
    return sums


def plain_view(pretext: SiameseDETR, outputs: Outputs, boxes: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Losses of one direction."""
    return plain_layers(
        pretext, outputs, region_targets(boxes.flatten(0, 1), [boxes.shape[1]] * len(boxes)), wanted, name="loss_region"
    )


def plain_regions(pretext: UPDETR | DETReg, batch: RegionBatch) -> dict[str, Tensor]:
    """The losses of a method of one view, one layer after the other."""
    detector, images = pretext.detector, len(batch.images)
    with torch.no_grad():
        features = detector.backbone(batch.images)
        wanted = detector.backbone(batch.crops).mean((2, 3))
        if isinstance(pretext, DETReg):
            wanted = detector.backbone.stride8(batch.crops).mean((2, 3))
    queries = detector.queries(images)
    if isinstance(pretext, UPDETR):
        told = pretext.region_projection(wanted).view(images, NUM_REGIONS, -1)
        mask = group_mask(queries.content.shape[1], NUM_REGIONS, told.device)
        queries = dataclasses.replace(condition_queries(queries, told), attention_mask=mask)
    outputs = detector.decode(queries, detector.encode_features(features, batch.padding))
    return plain_layers(pretext, outputs, batch.targets, wanted, name="loss_feature")


def plain_layers(
    pretext: Pretext, outputs: Outputs, targets: Targets, wanted: Tensor, *, name: str
) -> dict[str, Tensor]:
    """Match every layer on its own; every query predicts a feature (DETReg: in the last layer alone)."""
    losses: dict[str, Tensor] = {}
    head = pretext.embedding_head if isinstance(pretext, DETReg) else pretext.feature_head
    assert head is not None
    features = head(outputs.hidden)  # [L, B, Q, F]
    last = len(outputs.logits) - 1
    criterion = DetectionCriterion(pretext.settings.losses, "softmax", pretext.criterion.num_classes, num_layers=1)
    for layer in range(last + 1):
        one = Outputs(outputs.logits[layer, None], outputs.boxes[layer, None], outputs.hidden[layer, None])
        values, matches = criterion.losses_and_matches(one, targets, float(len(wanted)))
        found = features[layer, matches.image, matches.query]
        difference = F.normalize(found, dim=-1) - F.normalize(wanted[matches.target], dim=-1)
        if not isinstance(pretext, DETReg):
            values[name] = difference.square().sum() / len(wanted)
        elif layer == last:
            values["loss_embedding"] = F.l1_loss(found, wanted[matches.target])
        suffix = "" if layer == last else f"_{layer}"
        losses |= {name + suffix: value for name, value in values.items() if name.startswith("loss")}
    return losses


PLAIN: dict[str, Callable[..., dict[str, Tensor]]] = {
    "siamese": plain_losses,
    "updetr": plain_regions,
    "detreg": plain_regions,
}


def matmul_speedup() -> float:
    """Speed of a large bf16 matrix product over fp32; below 1 the processor only emulates it."""
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
