"""Tiny models of every variant and their traced graphs, each made once for all test files."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import supervision as sv
import torch
from filelock import FileLock

from helpers.detectors import own_settings
from helpers.paths import SHARED
from siamdetr.api import SiamDETR
from siamdetr.export.end_to_end import end_to_end
from siamdetr.export.gate.images import drawn_samples
from siamdetr.export.onnx import ExportResult, write_bundle
from siamdetr.export.onnx_graph import trace
from siamdetr.export.options import ExportOptions
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.models.detector import Detector
from siamdetr.settings.detector import DetectorSettings
from siamdetr.settings.registry import DETECTORS

NAMES = ("cat", "dog", "cell")
_TINY = {"backbone": "test_resnet", "dim": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 2, "feedforward": 32}
_POINTS = {"encoder_points": 2, "decoder_points": 2}
_TWO_STAGE = {"variant": "deformable", "levels": 3, "refine": True, "two_stage": True, **_POINTS}

# Every detector there is, and the deformable one with all that it can be given.
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: own_settings(name) for name in DETECTORS},
    "two-stage": _TWO_STAGE,
}


@functools.cache
def model_of(name: str, spec: PreprocessingSpec | None = None) -> SiamDETR:
    """A small detector with random weights whose boxes and classes depend on the image. Not to be changed."""
    torch.manual_seed(3)
    settings = {**_TINY, "classifier": "focal", "num_classes": 3, "num_queries": 20, **VARIANTS[name]}
    detector = Detector(DetectorSettings.model_validate(settings)).eval()
    for parameter in detector.class_head.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    # Refined boxes pass several heads, each of which would enlarge the differences of the one before it.
    for parameter in detector.box_head.parameters():
        torch.nn.init.normal_(parameter, std=0.1 if settings.get("refine") else 0.3)
    return SiamDETR.from_parts(
        detector,
        class_names=NAMES,
        preprocessing=spec or PreprocessingSpec.from_size(96),
        category_ids=(1, 5, 9),
        lineage=("a test",),
    )


@functools.cache
def _traced(name: str, options: ExportOptions) -> bytes:
    """The trace of a model: up to a minute, so each is made once for all processes of a session."""
    key = hashlib.sha256(repr((name, options)).encode()).hexdigest()
    file = Path(os.environ[SHARED]) / f"{key}.onnx"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            with tempfile.TemporaryDirectory() as folder:
                graph = trace(end_to_end(model_of(name), options), Path(folder))
            onnx.save(graph, file)
        return file.read_bytes()


def traced(name: str, options: ExportOptions | None = None) -> onnx.ModelProto:
    """A fresh copy of a variant's graph, with all outputs, in float32."""
    options = options or ExportOptions()
    of_tracing = ExportOptions(
        resize=options.resize, size=options.size, attention=options.attention, sampling=options.sampling
    )
    return onnx.ModelProto.FromString(_traced(name, of_tracing))


def export_variant(name: str, folder: Path, options: ExportOptions | None = None) -> ExportResult:
    """The bundle of a variant, through the gate."""
    options = options or ExportOptions()
    return write_bundle(model_of(name), traced(name, options), folder, options=options, samples=drawn_samples())


def same_detections(a: sv.Detections, b: sv.Detections, *, box: float = 0.02, score: float = 1e-4) -> bool:
    """Whether both hold the same boxes, scores and names but for rounding, in any order; and at least one."""
    near = np.abs(a.xyxy[:, None] - b.xyxy[None]).max(-1) < box
    near &= np.abs(np.asarray(a.confidence)[:, None] - np.asarray(b.confidence)[None]) < score
    near &= np.asarray(a.class_id)[:, None] == np.asarray(b.class_id)[None]
    return len(a) == len(b) > 0 and bool(near.any(0).all() and near.any(1).all())
