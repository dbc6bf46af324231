"""Add a TensorRT engine to a bundle.

It is built from model.onnx, measured if there is a GPU, and recorded in the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import ExportError
from siamdetr.export.bundle import ModelCard, digest_file, read_manifest, workplace, write_manifest
from siamdetr.export.engine import EngineDetector
from siamdetr.export.gate.checks import GateReport, run_gate
from siamdetr.export.gate.images import Samples
from siamdetr.export.options import Precision
from siamdetr.export.runtime import OnnxDetector
from siamdetr.export.tensorrt import BuiltEngine, EngineOptions, Profile, build_engine
from siamdetr.files import ENGINE_FILE, MANIFEST_FILE, ONNX_FILE
from siamdetr.images.preprocessing import Size
from siamdetr.inference.predictor import Predictor
from siamdetr.system.atomic_file import atomic_write, move_into_place

_NO_GPU = (
    "there is no GPU here to run an engine on; build it on the target with `siamdetr export BUNDLE --trt -o BUNDLE`"
)


def add_engine(
    folder: Path,
    *,
    profiles: Sequence[Profile],
    options: EngineOptions | None = None,
    reference: Predictor | None = None,
    samples: Samples | None = None,
    truth: DetectionIndex | None = None,
    gate: bool = True,
) -> BuiltEngine:
    """Build the engine of a bundle. An older engine stays until the new one has passed.

    Args:
        folder: the bundle; its ONNX file must have the digest of the manifest.
        profiles: shapes to build for.
        options: see `EngineOptions`.
        reference: what the engine is measured against; None: the bundle's ONNX file on the CPU, which was measured
            before.
        samples: images to compare on; None: drawn patterns.
        truth: labelled images whose AP is compared as well.
        gate: False: do not measure it.
    Raises:
        ExportError: no bundle, another ONNX file than the manifest's, no TensorRT, a build that failed, or an engine
            that does not compute what the reference does (it is then left as model.engine.rejected).
    """
    options = options or EngineOptions()
    card, manifest = read_manifest(folder)
    built = build_engine(
        folder / ONNX_FILE,
        precision=cast("Precision", card.precision),
        profiles=profiles,
        options=options,
        half_share=_half_share(manifest, card.precision),
    )
    with workplace(folder) as work:
        atomic_write(work / ENGINE_FILE, lambda file: file.write(built.plan))
        manifest["engine"] = _entry(built, work / ENGINE_FILE, profiles, options)
        write_manifest(work / MANIFEST_FILE, manifest)
        verdict: dict[str, Any] = {"verdict": "SKIPPED"}
        if gate and not torch.cuda.is_available():
            verdict["why"] = _NO_GPU
        elif gate:
            report = _measure(
                work, reference or OnnxDetector(folder), card, profiles=profiles, samples=samples, truth=truth
            )
            verdict = report.to_json()
            if not report.passed:
                rejected = folder / f"{ENGINE_FILE}.rejected"
                move_into_place(work / ENGINE_FILE, rejected)
                raise ExportError(
                    f"{rejected}: {report.failures()[0]}; the engine is kept for a look, and must not be used"
                )
        manifest["engine"]["gate"] = verdict
        move_into_place(work / ENGINE_FILE, folder / ENGINE_FILE)
        write_manifest(folder / MANIFEST_FILE, manifest)
    (folder / f"{ENGINE_FILE}.rejected").unlink(missing_ok=True)
    return built


def _half_share(manifest: dict[str, Any], precision: str) -> float:
    """The share of the graph's multiplications in its precision; 1 if the manifest does not count them."""
    counts = manifest.get("precision_realised", {})
    reduced, total = counts.get(f"multiplications_in_{precision}"), counts.get("multiplications")
    return float(reduced / total) if reduced and total else 1.0


def _entry(built: BuiltEngine, file: Path, profiles: Sequence[Profile], options: EngineOptions) -> dict[str, Any]:
    gpu = torch.cuda.is_available()
    return {
        "file": ENGINE_FILE,
        "sha256": digest_file(file),
        "bytes": len(built.plan),
        "module": built.module,
        "version": built.version,
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "compute_capability": "{}.{}".format(*torch.cuda.get_device_capability()) if gpu else None,
        "seconds": round(built.seconds, 1),
        "tf32": options.tf32,
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
        "workspace_gib": options.workspace,
        "profiles": [asdict(profile) for profile in profiles],
        "precision_realised": asdict(built.realised),
    }


def _measure(
    work: Path,
    reference: Predictor,
    card: ModelCard,
    *,
    profiles: Sequence[Profile],
    samples: Samples | None,
    truth: DetectionIndex | None,
) -> GateReport:
    engine, first = EngineDetector(work), profiles[0]
    sizes: list[Size] = [(first.height[i], first.width[i]) for i in (1, 0, 2)]
    return run_gate(
        reference,
        engine,
        precision=cast("Precision", card.precision),
        runtime=engine.runtime,
        batch=first.batch,
        sizes=sizes,
        samples=samples,
        truth=truth,
    )
