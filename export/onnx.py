"""Export a model into a bundle: graph, precision, gate, and only then the files."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from siamdetr.api import SiamDETR
from siamdetr.data.index import DetectionIndex
from siamdetr.errors import ExportError
from siamdetr.evaluation.classes import is_class_agnostic
from siamdetr.export import infer
from siamdetr.export.attempts import Attempt, attempts
from siamdetr.export.bundle import (
    METADATA_KEY,
    ModelCard,
    describe_tensors,
    digest_file,
    labels_text,
    workplace,
    write_manifest,
)
from siamdetr.export.end_to_end import ATTENTION, DETECTIONS, RAW, end_to_end
from siamdetr.export.gate.checks import GateReport, Raw, pytorch_raw, pytorch_reference, run_gate
from siamdetr.export.gate.images import Samples
from siamdetr.export.int8.quantize import check_calibration
from siamdetr.export.manifest_text import describe_detections, describe_preparation
from siamdetr.export.onnx_graph import readable_by_older, trace, with_outputs
from siamdetr.export.options import ExportOptions, exported_preprocessing
from siamdetr.export.runtime import OnnxDetector
from siamdetr.export.timing.runtimes import RuntimeTime, beside_float
from siamdetr.files import INFER_FILE, LABELS_FILE, MANIFEST_FILE, ONNX_FILE
from siamdetr.images.preprocessing import Prepared
from siamdetr.models.deformable.attention import has_deformable_attention
from siamdetr.settings.base import to_json
from siamdetr.system.atomic_file import atomic_text, atomic_write, move_into_place

logger = logging.getLogger(__name__)

_STAGES = 4
_LARGEST = 2**31 - 2**20  # bytes; a protobuf file ends at 2 GiB


@dataclass(frozen=True)
class ExportResult:
    """The result of an export."""

    folder: Path
    onnx_file: Path
    gate: GateReport | None  # None: it was skipped
    precision: dict[str, Any]  # what was asked, how much of the graph it is, sizes in bytes
    num_nodes: int
    num_bytes: int
    seconds: float
    runtimes: tuple[RuntimeTime, ...] = ()  # of int8, fastest first; the machine's, so not in the bundle


def export_onnx(
    model: SiamDETR,
    folder: str | Path,
    *,
    options: ExportOptions | None = None,
    samples: Samples | None = None,
    truth: DetectionIndex | None = None,
    gate: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> ExportResult:
    """Export a model into a bundle, measured against PyTorch.

    Nothing is left half-written; an older bundle stays until the new one has passed.

    Args:
        model: any variant; it is not changed.
        folder: where the bundle goes; it is made.
        options: precision, inputs and outputs; None: float32, boxes, scores and labels.
        samples: images to compare on, and to measure int8's scales on; None: drawn patterns (not for int8).
        truth: labelled images whose AP is compared as well.
        gate: False: skip the comparison, which the manifest then says.
        progress: called with (stages done, stages in all).
    Raises:
        ExportError: no classes, a model over 2 GiB, a folder that cannot be written, a dimension that became constant,
            int8 without images, or a graph that does not compute what PyTorch does (it is then left as
            model.onnx.rejected).
    """
    started = time.perf_counter()
    options = options or ExportOptions()
    tell = progress or (lambda done, total: None)
    _check_exportable(model)
    if options.attention and has_deformable_attention(model.detector):
        logger.warning(
            "The attention of deformable models is drawn with an operator (ScatterElements with a sum) that TensorRT does not "
            "read: this file is for ONNX Runtime and OpenVINO; leave --attention out for an engine"
        )
    if options.precision == "int8":
        check_calibration(samples)
    folder = Path(folder)
    with workplace(folder) as work:  # also proves that the folder can be written, before minutes of work
        tell(0, _STAGES)
        traced = trace(end_to_end(model, options), work)
    result = write_bundle(
        model, traced, folder, options=options, samples=samples, truth=truth, gate=gate, progress=progress
    )
    return dataclasses.replace(result, seconds=time.perf_counter() - started)


def write_bundle(
    model: SiamDETR,
    traced: onnx.ModelProto,
    folder: Path,
    *,
    options: ExportOptions,
    samples: Samples | None = None,
    truth: DetectionIndex | None = None,
    gate: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> ExportResult:
    """As `export_onnx`, from a traced graph, so that one trace serves every precision.

    Args:
        traced: the result of `trace` with the same options, whatever the precision; metadata is added to it.
    """
    started = time.perf_counter()
    tell = progress or (lambda done, total: None)
    with workplace(folder) as work:
        tell(1, _STAGES)
        card = _card(model, options)
        for made in attempts(traced, options.precision, samples, card.preprocessing, work):
            final = _write_graph(made.graph, card, work / ONNX_FILE)
            tell(2, _STAGES)
            report = _measure(model, made, options, samples, truth, work) if gate else None
            if report is None or report.passed:
                break
            failed = report
        else:
            _reject(work / ONNX_FILE, folder, failed)
        runtimes: tuple[RuntimeTime, ...] = ()
        if report is not None and options.precision == "int8":
            float32 = readable_by_older(with_outputs(traced, card.outputs))
            runtimes = beside_float(float32, work / ONNX_FILE, check_calibration(samples))
        tell(3, _STAGES)
        num_bytes = (work / ONNX_FILE).stat().st_size
        precision = {
            "asked": options.precision,
            "multiplications": made.multipliers,
            f"multiplications_in_{options.precision}": made.reduced,
            "bytes": num_bytes,
            "bytes_fp32": traced.ByteSize(),
        }
        _write_companions(work, card, report, precision=precision, graph=final)
        for name in (ONNX_FILE, LABELS_FILE, INFER_FILE, MANIFEST_FILE):  # the manifest last: it vouches for the rest
            move_into_place(work / name, folder / name)
    for name in (f"{ONNX_FILE}.rejected", f"{ONNX_FILE}.rejected.json"):
        (folder / name).unlink(missing_ok=True)
    tell(_STAGES, _STAGES)
    return ExportResult(
        folder=folder,
        onnx_file=folder / ONNX_FILE,
        gate=report,
        precision=precision,
        num_nodes=len(final.graph.node),
        num_bytes=num_bytes,
        seconds=time.perf_counter() - started,
        runtimes=runtimes,
    )


def _write_graph(graph: onnx.ModelProto, card: ModelCard, file: Path) -> onnx.ModelProto:
    """Write a graph with the outputs that were asked for; returns what was written."""
    onnx.helper.set_model_props(graph, {METADATA_KEY: json.dumps(card.to_json())})
    final = readable_by_older(with_outputs(graph, card.outputs))
    atomic_write(file, lambda handle: handle.write(final.SerializeToString()))
    return final


def _measure(
    model: SiamDETR,
    made: Attempt,
    options: ExportOptions,
    samples: Samples | None,
    truth: DetectionIndex | None,
    work: Path,
) -> GateReport:
    """Run the gate on the file, and on the same graph with logits and boxes as further outputs."""
    probe = work / "probe.onnx"
    onnx.helper.set_model_props(made.computable, {entry.key: entry.value for entry in made.graph.metadata_props})
    onnx.save(with_outputs(made.computable, (*DETECTIONS, *RAW)), probe)
    inner = OnnxDetector(probe)
    emulated = made.computable is not made.graph
    exported = inner if emulated else OnnxDetector(work / ONNX_FILE)

    reference = pytorch_reference(model, exported.preprocessing)

    def raw(batch: Prepared) -> tuple[Raw, Raw]:
        logits, fractions = inner.run(RAW, batch)
        return pytorch_raw(reference, batch), (logits, fractions)

    report = run_gate(
        reference,
        exported,
        precision=options.precision,
        runtime=exported.runtime + (", bfloat16 emulated by rounding" if emulated else ""),
        batch=options.batch,
        samples=samples,
        truth=truth,
        raw=None if model.detector.settings.proposes else raw,  # whose queries may change places
    )
    probe.unlink()
    return report


def _reject(file: Path, folder: Path, report: GateReport) -> None:
    """Keep the file under a name that nothing opens, with its measurements beside it.

    Raises:
        ExportError: always.
    """
    rejected = folder / f"{file.name}.rejected"
    move_into_place(file, rejected)
    text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
    atomic_text(folder / f"{file.name}.rejected.json", text + "\n")
    reasons = report.failures()
    more = f" (and {len(reasons) - 1} more in {rejected.name}.json)" if len(reasons) > 1 else ""
    raise ExportError(f"{rejected}: {reasons[0]}{more}; the graph is kept for a look, and must not be used")


def _check_exportable(model: SiamDETR) -> None:
    if is_class_agnostic(model):
        raise ExportError(
            "export: the model knows no classes, it was pretrained only; finetune it on labelled images first: "
            "siamdetr finetune --data LABELLED --init RUN"
        )
    size = sum(p.numel() * p.element_size() for p in (*model.detector.parameters(), *model.detector.buffers()))
    if size > _LARGEST:
        raise ExportError(f"export: the weights take {size / 2**30:.1f} GiB, and one ONNX file holds at most 2")


def _card(model: SiamDETR, options: ExportOptions) -> ModelCard:
    packages = ("siamdetr", "torch", "onnx", "onnxscript", "onnxslim", "onnxruntime")
    return ModelCard(
        class_names=model.class_names,
        category_ids=model.category_ids,
        preprocessing=exported_preprocessing(model.preprocessing, options),
        detector=to_json(model.detector.settings),
        lineage=model.metadata.lineage,
        metrics=model.metadata.metrics,
        versions={name: version for name in packages if (version := _version(name)) is not None},
        precision=options.precision,
        threshold=model.threshold if options.threshold is None else options.threshold,
        threshold_from=model.threshold_from if options.threshold is None else "given to the export",
        outputs=(*DETECTIONS, *(RAW if options.raw else ()), *(ATTENTION if options.attention else ())),
        options={"sampling": options.sampling, "batch": list(options.batch)},
    )


def _version(package: str) -> str | None:
    names = ("onnxruntime-gpu", "onnxruntime") if package == "onnxruntime" else (package,)
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def _num_boxes(graph: onnx.ModelProto) -> int | None:
    """K, if the graph has it as a number."""
    boxes = next(value for value in graph.graph.output if value.name == "boxes")
    return boxes.type.tensor_type.shape.dim[1].dim_value or None


def _write_companions(
    work: Path, card: ModelCard, report: GateReport | None, *, precision: dict[str, Any], graph: onnx.ModelProto
) -> None:
    takes_padding = card.preprocessing.mode == "letterbox"
    manifest = {
        **card.to_json(),
        "files": {"model": ONNX_FILE, "labels": LABELS_FILE, "infer": INFER_FILE},
        "sha256": {ONNX_FILE: digest_file(work / ONNX_FILE)},
        "opset": graph.opset_import[0].version,
        "ir_version": graph.ir_version,
        "precision_realised": precision,
        **describe_tensors(card.outputs, takes_padding=takes_padding),
        "preparing_images": describe_preparation(card.preprocessing),
        "reading_detections": describe_detections(_num_boxes(graph), card.threshold),
        "gate": {"verdict": "SKIPPED"} if report is None else report.to_json(),
    }
    write_manifest(work / MANIFEST_FILE, manifest)
    atomic_text(work / LABELS_FILE, labels_text(card.class_names))
    shutil.copyfile(infer.__file__, work / INFER_FILE)
