"""Seconds per image: PyTorch, ONNX Runtime and OpenVINO against Hugging Face's eager model, in turns.

    python benchmarks/predict.py [--variant conditional] [--backbone resnet50] [--size 640] [--batch 1] [--rounds 7] [--threads 2]

Random weights (time does not depend on them). "plain" is the module as it trains; "predict" is what `SiamDETR.predict`
runs: batch norms folded, channels last; the others are exported files. All on the CPU, from prepared pixels to scored
boxes; then, for one picture, all of `predict` from a PIL image of that size on. Hugging Face's model needs `pip install
transformers`, and is there for all variants but dn; without it the ratios are to "plain". int8's
scales come from drawn patterns: its time means something, its boxes do not.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectors import rtdetr_options
from PIL import Image

from siamdetr import SiamDETR
from siamdetr.export.end_to_end import end_to_end
from siamdetr.export.gate.images import drawn_images, drawn_samples
from siamdetr.export.onnx import write_bundle
from siamdetr.export.onnx_graph import trace
from siamdetr.export.options import ExportOptions, Precision
from siamdetr.export.runtime import OnnxDetector
from siamdetr.images.preprocessing import Prepared, PreprocessingSpec
from siamdetr.inference.pytorch import normalize_prepared
from siamdetr.models.detector import Detector
from siamdetr.settings.detector import DetectorSettings

HUGGING_FACE = {"vanilla": "Detr", "conditional": "ConditionalDetr", "dab": "DabDetr", "deformable": "DeformableDetr"}


def take_turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def of_rtdetr(backbone: str) -> dict[str, Any]:
    """Settings of RT-DETRv2's recipes of three decoder layers."""
    return {
        "backbone": f"{backbone}vd", "levels": 3, "encoder_layers": 1, "decoder_layers": 3, "feedforward": 1024, "dropout": 0.0,
        "fusion_expansion": 0.5 if backbone == "resnet18" else 1.0,
    }  # fmt: skip


def hugging_face(settings: DetectorSettings) -> Any:
    """Hugging Face's eager model with random weights; None where it has no such variant."""
    variant = settings.variant
    if importlib.util.find_spec("transformers") is None or variant not in (*HUGGING_FACE, "rtdetr"):
        return None
    import transformers

    shape: dict[str, Any]
    if variant == "rtdetr":
        backbone, layers = settings.backbone.removesuffix("vd"), settings.decoder_layers
        name, shape = rtdetr_options(
            argparse.Namespace(backbone=backbone, layers=layers, feedforward=settings.feedforward)
        )
    else:
        stages = ["stage2", "stage3", "stage4"] if settings.levels > 1 else ["stage4"]
        name, shape = HUGGING_FACE[variant], {
            "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None,
            "backbone_config": transformers.ResNetConfig(out_features=stages),
            **({"num_feature_levels": settings.levels} if variant == "deformable" else {}),
        }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(num_queries=settings.num_queries, num_labels=80, **shape)
    return getattr(transformers, f"{name}ForObjectDetection")(config).eval()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--variant", default="conditional", choices=("vanilla", "conditional", "dab", "dn", "deformable", "rtdetr")
    )
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--levels", type=int, default=1, help="feature levels of a deformable detector")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    spec = PreprocessingSpec.from_size((given.size, given.size))
    settings = DetectorSettings.model_validate(
        {
            "variant": given.variant, "backbone": given.backbone, "num_classes": 80, "num_queries": given.queries,
            "levels": given.levels, "classifier": "softmax" if given.variant == "vanilla" else "focal",
            **(of_rtdetr(given.backbone) if given.variant == "rtdetr" else {}),
        }
    )  # fmt: skip
    names = [f"class_{label}" for label in range(80)]
    model = SiamDETR.from_parts(Detector(settings).eval(), class_names=names, preprocessing=spec)
    pixels = drawn_images(given.batch, given.size, given.size)
    sizes = np.full((given.batch, 2), given.size, dtype=np.int64)
    batch = Prepared(pixels, None, sizes, sizes)
    picture = Image.fromarray(pixels[0].transpose(1, 2, 0))
    theirs = hugging_face(settings)

    def plain() -> object:
        with torch.inference_mode():
            return model.detector(*normalize_prepared(batch, spec, "cpu"))

    def eager() -> object:
        with torch.inference_mode():
            return theirs(pixel_values=normalize_prepared(batch, spec, "cpu")[0])

    print(
        f"{given.variant} {given.backbone}, batch {given.batch} of {given.size}×{given.size}, {given.threads} threads, load of the machine {os.getloadavg()[0]:.1f}"
    )
    model_only: dict[str, Callable[[], object]] = {} if theirs is None else {"Hugging Face, eager mode": eager}
    model_only |= {"PyTorch, plain": plain, "PyTorch, predict": lambda: model.predict_batch(batch)}
    one_picture: dict[str, Callable[[], object]] = {"PyTorch, predict(picture)": lambda: model.predict(picture)}
    with tempfile.TemporaryDirectory() as folder:
        for name, opened in exported(model, Path(folder), given.threads).items():
            model_only[name] = lambda opened=opened: opened.predict_batch(batch)
            one_picture[f"{name}, predict(picture)"] = lambda opened=opened: opened.predict(picture)
        for ways in (model_only, one_picture):
            medians = take_turns(ways, given.rounds)
            first = next(iter(medians.values()))
            for name, seconds in medians.items():
                print(f"  {name:36} {seconds * 1000:8.1f} ms   ×{seconds / first:.2f}")


def exported(model: SiamDETR, folder: Path, threads: int) -> dict[str, OnnxDetector]:
    """The model in several precisions and runtimes; prints what each export took."""
    started = time.perf_counter()
    graph = trace(end_to_end(model, ExportOptions()), folder)
    print(f"Trace: {time.perf_counter() - started:.0f} s")
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "int8")
    found = {}
    for precision in precisions:
        options = ExportOptions(precision=precision)
        result = write_bundle(
            model, graph, folder / precision, options=options, samples=drawn_samples(), gate=precision == "fp32"
        )
        error = "" if result.gate is None else f", largest difference {result.gate.largest_error:.1e}"
        print(f"{precision}: {result.seconds:.0f} s, {result.num_nodes} nodes, {result.num_bytes / 1e6:.0f} MB{error}")
        if precision != "bf16":  # ONNX Runtime has none of it on the CPU
            found[f"ONNX Runtime, {precision}"] = OnnxDetector(folder / precision, threads=threads)
        if importlib.util.find_spec("openvino") is not None:
            found[f"OpenVINO, {precision}"] = OnnxDetector(folder / precision, threads=threads, backend="openvino")
    return found


if __name__ == "__main__":
    main()
