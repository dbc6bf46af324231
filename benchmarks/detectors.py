"""One training step and one inference of every variant, against Hugging Face `transformers`.

A step is forward, matching, losses of all layers, backward, clipping and AdamW on a batch of images of two sizes,
padded; an inference is one image without padding. Both have the same backbone, layers, widths, queries, boxes and
dropout, random weights, and take turns in processes of their own, ours as `siamdetr finetune` sets one up (subnormal
numbers, freed memory). RT-DETR is version 2, with one encoder layer and denoising, as published.
GFLOPs are of an inference, a multiplication and an addition each: convolutions and matrix products alone.

    python benchmarks/detectors.py                      # some minutes on two cores
    python benchmarks/detectors.py --size 800 --batch 4 --queries 300 --repeats 20 --device cuda
    python benchmarks/detectors.py --threads 1 --processor-time   # on a machine that others use: seconds of the processor
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from siamdetr.models.compiled import compile_parts
from siamdetr.models.criterion.layer_losses import weighted_sum
from siamdetr.models.criterion.losses import DetectionCriterion
from siamdetr.models.detector import Detector
from siamdetr.presets.preset import CONTRASTIVE, IOU_AWARE_LOSSES
from siamdetr.settings.detector import DenoisingSettings, DetectorSettings, LossSettings
from siamdetr.settings.registry import DETECTORS
from siamdetr.structures.targets import Targets
from siamdetr.system.heap import freed_memory_kept
from siamdetr.training.precision import training_arithmetic

Call = Callable[[], object]
Clock = Callable[[], float]  # makes a call and returns its seconds
Kind = Literal["ours", "compiled", "theirs"]
BOXES, CLASSES, LEVELS, DROPOUT = 8, 80, 4, 0.1
THEIRS = ("vanilla", "conditional", "dab", "deformable", "rtdetr")  # variants that transformers has


@dataclass(frozen=True)
class Measured:
    """A model's two calls, which return their seconds; parameters that learn, millions; GFLOPs."""

    step: Clock
    inference: Clock
    learning: float
    gflops: float


@dataclass(frozen=True)
class Example:
    """The input of both."""

    images: Tensor  # [B, 3, S, S], every second one narrower
    padding: Tensor  # [B, S, S], True = padded
    targets: Targets


def main() -> None:
    """Measure and print a table of medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(DETECTORS), choices=list(DETECTORS))
    parser.add_argument("--size", type=int, default=256, help="side of the images, pixels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--layers", type=int, default=3, help="of encoder and of decoder; the papers have 6")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--feedforward", type=int, default=1024)
    parser.add_argument("--backbone", default="resnet50", choices=["resnet18", "resnet50"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processor-time", action="store_true", help="instead of the wall's, where others compute too")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="of our steps; theirs are fp32")
    parser.add_argument("--compiled", action="store_true", help="beside ours compiled, instead of transformers")
    options = parser.parse_args()
    beside = importlib.util.find_spec("transformers") is not None
    if not beside:
        print("transformers is not installed (pip install 'siamdetr[bench]'): ours alone is measured")
    print(
        f"our steps in {options.precision}; {options.backbone}, {options.layers}+{options.layers} layers, {options.queries} queries, batch {options.batch} of "
        f"{options.size} pixels, {options.threads} threads, {options.device}, load {os.getloadavg()[0]:.1f}; medians of {options.repeats}, milliseconds;"
        " learning: parameters, millions; these and GFLOPs: ours, theirs"
    )
    print(
        f"{'variant':16}{'step':>9}{'theirs':>9}{'ratio':>8}   {'inference':>9}{'theirs':>9}{'ratio':>8}   {'learning':12}   GFLOPs"
    )
    for variant in options.variants:
        kinds: list[Kind] = ["ours"]
        if options.compiled:
            kinds.append("compiled")
        elif beside and variant in THEIRS:
            kinds.append("theirs")
        with contextlib.ExitStack() as processes:
            models = [processes.enter_context(measuring(kind, variant, options)) for kind in kinds]
            print(f"{variant:16}{row(models, options.repeats)}", flush=True)


@contextlib.contextmanager
def as_in_training() -> Iterator[None]:
    """Set up this process as `siamdetr train` and `finetune` do."""
    with training_arithmetic("convolutions"), freed_memory_kept():
        yield


@contextlib.contextmanager
def measuring(kind: Kind, variant: str, options: argparse.Namespace) -> Iterator[Measured]:
    """A model in a process of its own, which ends with the block."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=answer, args=(there, kind, variant, options), daemon=True)
    process.start()
    there.close()

    def ask(what: str) -> float:
        here.send(what)
        seconds: float = here.recv()
        return seconds

    learning, gflops = here.recv()
    yield Measured(lambda: ask("step"), lambda: ask("inference"), learning, gflops)
    here.close()
    process.join()


def answer(connection: Connection, kind: Kind, variant: str, options: argparse.Namespace) -> None:
    """Measure what the other process asks for, until it asks no more."""
    with contextlib.nullcontext() if kind == "theirs" else as_in_training():
        torch.set_num_threads(options.threads)
        example = make_example(options.batch, options.size, torch.device(options.device))
        model = theirs(variant, options, example) if kind == "theirs" else ours(variant, options, example, kind)
        connection.send((model.learning, model.gflops))
        with contextlib.suppress(EOFError):
            while True:
                connection.send(getattr(model, connection.recv())())


def row(models: Sequence[Measured], repeats: int) -> str:
    """The figures of one variant: step, inference, parameters."""
    parts = []
    for clocks in ([model.step for model in models], [model.inference for model in models]):
        own, *others = medians(clocks, repeats)
        beside = f"{1e3 * others[0]:9.1f}{others[0] / own:7.2f}x" if others else f"{'–':>9}{'–':>8}"
        parts.append(f"{1e3 * own:9.1f}{beside}")
    parts.append(f"{', '.join(f'{model.learning:.1f}' for model in models):12}")
    parts.append(", ".join(f"{model.gflops:.1f}" for model in models))
    return "   ".join(parts)


def medians(clocks: Sequence[Clock], repeats: int) -> list[float]:
    """Median seconds of each; they take turns, after one round that is not counted."""
    seconds: list[list[float]] = [[] for _ in clocks]
    for turn in range(repeats + 1):
        for measured_seconds, one in zip(seconds, clocks, strict=True):
            found = one()
            if turn:
                measured_seconds.append(found)
    return [statistics.median(values) for values in seconds]


def clock(call: Call, *, processor_time: bool) -> Clock:
    """Measure a call."""
    now = time.process_time if processor_time else time.perf_counter

    def seconds() -> float:
        start = now()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return now() - start

    return seconds


def make_example(batch: int, size: int, device: torch.device) -> Example:
    """Noise with boxes; every second image is a quarter narrower than the batch."""
    torch.manual_seed(0)
    images, padding = torch.randn(batch, 3, size, size), torch.zeros(batch, size, size, dtype=torch.bool)
    padding[1::2, :, size * 3 // 4 :] = True
    targets = Targets.from_lists(
        [torch.rand(BOXES, 4) * 0.3 + 0.2 for _ in range(batch)],
        [torch.randint(CLASSES, (BOXES,)) for _ in range(batch)],
    )
    return Example(images.masked_fill(padding[:, None], 0).to(device), padding.to(device), targets.to(device))


def ours(variant: str, options: argparse.Namespace, example: Example, kind: Kind) -> Measured:
    """The variant as it is here, or compiled."""
    entry, hybrid = DETECTORS[variant], variant == "rtdetr"
    settings = DetectorSettings(
        variant=variant,
        classifier=entry.classifier,
        backbone=f"{options.backbone}vd" if hybrid else options.backbone,
        num_classes=CLASSES,
        num_queries=options.queries,
        encoder_layers=1 if hybrid else options.layers,
        decoder_layers=options.layers,
        feedforward=options.feedforward,
        dropout=0.0 if hybrid else DROPOUT,
        levels=3 if hybrid else LEVELS if entry.multi_scale else 1,
        fusion_expansion=0.5 if hybrid and options.backbone == "resnet18" else 1.0,
    )
    detector = Detector(settings).to(example.images.device)
    losses = LossSettings.model_validate(IOU_AWARE_LOSSES) if entry.iou_aware else LossSettings()
    denoising = DenoisingSettings.model_validate(CONTRASTIVE) if entry.contrastive else DenoisingSettings()
    calls = measured_detector(
        detector, losses, denoising, example, half=options.precision == "bf16", processor_time=options.processor_time
    )
    if kind == "compiled":
        compile_parts(detector)
    return calls


def measured_detector(
    detector: Detector,
    losses: LossSettings,
    denoising: DenoisingSettings,
    example: Example,
    *,
    half: bool = False,
    processor_time: bool = False,
) -> Measured:
    """A training step and an inference of one of our detectors; `half`: steps in bf16."""
    criterion = DetectionCriterion.of_detector(detector.settings, losses, supervised=True)
    images = example.images.contiguous(memory_format=torch.channels_last)  # as `normalize` gives them

    def loss() -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            queries = detector.training_queries(example.targets, denoising)
            outputs = detector(images, example.padding, queries)
            return weighted_sum(criterion(outputs, example.targets), criterion.weights)

    return measured(detector, loss, images[:1], processor_time=processor_time)


def theirs(variant: str, options: argparse.Namespace, example: Example) -> Measured:
    """The variant of transformers."""
    import transformers

    transformers.logging.set_verbosity_error()
    kind, configuration = rtdetr_options(options) if variant == "rtdetr" else detr_options(variant, options)
    config = getattr(transformers, f"{kind}Config")(num_queries=options.queries, num_labels=CLASSES, **configuration)
    model = getattr(transformers, f"{kind}ForObjectDetection")(config).to(example.images.device)
    for name, parameter in model.named_parameters():
        # transformers freezes all of such a backbone; ours, as DETR, the stem and stage 1.
        parameter.requires_grad_(not any(part in name for part in (".embedder.", ".stages.0.")))
    boxes, labels = example.targets.boxes.split(BOXES), example.targets.labels.split(BOXES)
    wanted = [{"class_labels": label, "boxes": box} for label, box in zip(labels, boxes, strict=True)]
    mask = (~example.padding).long()

    def loss() -> Tensor:
        found: Tensor = model(pixel_values=example.images, pixel_mask=mask, labels=wanted).loss
        return found

    return measured(model, loss, example.images[:1], processor_time=options.processor_time)


def resnet_shape(options: argparse.Namespace) -> dict[str, Any]:
    """The backbone, in transformers' words."""
    if options.backbone == "resnet50":
        return {"layer_type": "bottleneck", "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048]}
    return {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}


def detr_options(variant: str, options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Class and configuration of DETR and those who followed it closely."""
    import transformers

    stages = ["stage2", "stage3", "stage4"] if variant == "deformable" else ["stage4"]
    kinds = {"vanilla": "Detr", "conditional": "ConditionalDetr", "dab": "DabDetr", "deformable": "DeformableDetr"}
    return kinds[variant], {
        "backbone_config": transformers.ResNetConfig(**resnet_shape(options), out_features=stages),
        "encoder_layers": options.layers,
        "decoder_layers": options.layers,
        "encoder_ffn_dim": options.feedforward,
        "decoder_ffn_dim": options.feedforward,
        "dropout": DROPOUT,
        "attention_dropout": DROPOUT,  # as in the official code, and in ours
        "activation_dropout": DROPOUT,
        "auxiliary_loss": True,
    }


def rtdetr_options(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Class and configuration of RT-DETRv2."""
    import transformers

    shape = resnet_shape(options)
    return "RTDetrV2", {
        "backbone_config": transformers.RTDetrResNetConfig(**shape, out_features=["stage2", "stage3", "stage4"]),
        "encoder_in_channels": shape["hidden_sizes"][1:],
        "hidden_expansion": 0.5 if options.backbone == "resnet18" else 1.0,
        "encoder_layers": 1,
        "decoder_layers": options.layers,
        "encoder_ffn_dim": options.feedforward,
        "decoder_ffn_dim": options.feedforward,
        "anchor_image_size": None,
    }


def measured(model: nn.Module, loss: Callable[[], Tensor], image: Tensor, *, processor_time: bool) -> Measured:
    """A step (forward, backward, clipping, AdamW), and an inference of one image."""
    learning: Sequence[nn.Parameter] = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-5, fused=True)

    def step() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        nn.utils.clip_grad_norm_(learning, 0.1)
        optimizer.step()

    @torch.inference_mode()
    def inference() -> object:
        model.eval()
        return model(image)

    model.eval()
    with FlopCounterMode(display=False) as counter:  # with gradients, whose hooks it uses
        model(image)
    clocks = (clock(call, processor_time=processor_time) for call in (step, inference))
    return Measured(*clocks, sum(one.numel() for one in learning) / 1e6, counter.get_total_flops() / 1e9)


if __name__ == "__main__":
    main()
