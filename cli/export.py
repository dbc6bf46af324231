"""`siamdetr export MODEL -o DIR`: write a bundle, compared with PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from siamdetr.cli import options
from siamdetr.cli.usage import export_options as flags
from siamdetr.cli.usage.rules import is_exported
from siamdetr.cli.usage.unused_options import refuse_given

if TYPE_CHECKING:
    from siamdetr.api import SiamDETR
    from siamdetr.data.index import DetectionIndex
    from siamdetr.export.gate.checks import GateReport
    from siamdetr.export.gate.images import Samples
    from siamdetr.export.options import ExportOptions, Precision, Resize, Sampling
    from siamdetr.export.tensorrt import EngineOptions, TrtModule
    from siamdetr.inference.predictor import Predictor

_SAMPLES = 4


@dataclass(frozen=True)
class _Evidence:
    """The images on which an export is compared with PyTorch."""

    samples: Samples | None  # for scores, boxes and int8's scales; None: drawn patterns
    labelled: DetectionIndex | None  # for AP
    gate: bool  # whether anything is compared


@dataclass(frozen=True)
class _EngineRequest:
    """The TensorRT engine to build, with its ranges as they were typed."""

    options: EngineOptions
    batch: tuple[int, int, int]
    heights: str | None
    widths: str | None


def export(
    context: typer.Context,
    model: flags.ModelPath,
    output: flags.Output,
    data: flags.Data = None,
    split: options.Split = None,
    data_format: options.Format = "auto",
    images: flags.Images = 100,
    precision: flags.Precision = "fp32",
    int8: flags.Int8 = False,
    resize: flags.Resize = None,
    imgsz: flags.ImageSize = None,
    raw: flags.Raw = False,
    attention: flags.Attention = False,
    sampling: flags.Sampling = "gather",
    batch: flags.Batch = "1,2,5",
    threshold: flags.Threshold = None,
    gate: flags.Gate = True,
    trt: flags.Trt = False,
    trt_module: flags.TrtModule = None,
    heights: flags.Heights = None,
    widths: flags.Widths = None,
    workspace: flags.Workspace = 4.0,
    timing_cache: flags.TimingCache = None,
    tf32: flags.Tf32 = False,
    version_compatible: flags.VersionCompatible = False,
    hardware_compatible: flags.HardwareCompatible = False,
    triton: flags.Triton = None,
) -> None:
    """Export to ONNX (any batch and image size); a file that disagrees with PyTorch is rejected."""
    from siamdetr.api import kind_of
    from siamdetr.export.options import ExportOptions
    from siamdetr.export.tensorrt import EngineOptions

    _check(model, output, data, timing_cache, triton)
    evidence = _evidence(context, _data(model, data, split, data_format), images, int8=int8, gate=gate)
    engine = EngineOptions(
        module=cast("TrtModule | None", trt_module),
        workspace=workspace,
        timing_cache=timing_cache,
        tf32=tf32,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
    )
    request = _EngineRequest(engine, numbers(batch, "--batch"), heights, widths)
    if trt and kind_of(model) == "bundle":
        _add_engine(model, output, request, evidence)
    else:
        wanted = ExportOptions(
            precision=cast("Precision", "int8" if int8 else precision),
            resize=cast("Resize | None", resize),
            size=_size(imgsz),
            raw=raw,
            attention=attention,
            sampling=cast("Sampling", sampling),
            batch=request.batch,
            threshold=threshold,
        )
        _export_anew(context, model, output, wanted, request if trt else None, evidence)
    if triton is not None:
        _write_triton(output, triton)


def _size(imgsz: str | None) -> tuple[int, int] | None:
    size = options.image_size(imgsz)
    return (size, size) if isinstance(size, int) else size


def _evidence(
    context: typer.Context, truth: DetectionIndex | None, images: int, *, int8: bool, gate: bool
) -> _Evidence:
    from siamdetr.export.gate.images import samples_of

    if truth is None:
        refuse_given(
            context, "images", "there are none: --data is not given, and MODEL is no run with a validation part"
        )
        return _Evidence(None, None, gate)
    labelled = None if truth.num_boxes == 0 else truth.subset(range(min(images, len(truth))))
    return _Evidence(samples_of(truth, images if int8 else _SAMPLES), labelled, gate)


def _export_anew(
    context: typer.Context,
    model: Path,
    output: Path,
    wanted: ExportOptions,
    request: _EngineRequest | None,
    evidence: _Evidence,
) -> None:
    """Export a model that is no exported file yet, and build the requested engine from its graph."""
    from siamdetr.api import SiamDETR
    from siamdetr.cli.console import console, progress
    from siamdetr.cli.usage.runtime_table import print_runtimes
    from siamdetr.errors import ExportError
    from siamdetr.export.gate.checks import pytorch_reference
    from siamdetr.export.onnx import export_onnx
    from siamdetr.export.options import exported_preprocessing
    from siamdetr.export.tensorrt import find_module

    if is_exported(model):
        raise ExportError(
            f"{model}: exported already; a bundle folder takes an engine with --trt, anything else is exported anew from the "
            "run folder or .safetensors file"
        )
    if request is not None:
        find_module(request.options.module)  # before the graph, which takes minutes
    opened = SiamDETR.load(model)
    _check_variant(context, opened, attention_in_engine=wanted.attention and request is not None)
    with progress("export") as update:
        result = export_onnx(
            opened,
            output,
            options=wanted,
            samples=evidence.samples,
            truth=evidence.labelled,
            gate=evidence.gate,
            progress=update,
        )
    console.print(
        f"{result.onnx_file}: {result.num_bytes / 2**20:.1f} MiB, {result.num_nodes} nodes, {result.seconds:.0f} s. "
        + ("Not compared with PyTorch (--no-gate)." if result.gate is None else verdict(result.gate)),
        markup=False,
    )
    if result.runtimes:
        print_runtimes(result.runtimes)
    if request is not None:
        reference = pytorch_reference(opened, exported_preprocessing(opened.preprocessing, wanted))
        _add_engine(output, output, request, evidence, reference)
    console.print(f"Without siamdetr and PyTorch: python {result.folder / 'infer.py'} IMAGE…", markup=False)


def _check_variant(context: typer.Context, model: SiamDETR, *, attention_in_engine: bool) -> None:
    """Refuse what this variant cannot export, or does not use.

    Raises:
        ExportError: the attention of a deformable model in an engine.
        typer.BadParameter: --sampling of a model without deformable attention.
    """
    from siamdetr.errors import ExportError
    from siamdetr.models.deformable.attention import has_deformable_attention

    deformable = has_deformable_attention(model.detector)
    if deformable and attention_in_engine:
        raise ExportError(
            "--attention: TensorRT cannot read the attention of deformable models; leave it out, or make two exports"
        )
    if not deformable:
        refuse_given(context, "sampling", f"{model.detector.settings.variant} has no deformable attention")


def _check(model: Path, output: Path, data: Path | None, timing_cache: Path | None, triton: Path | None) -> None:
    """Check, before the first write, that no output overwrites the model or the data.

    An engine may go into the bundle that it is built from.
    """
    from siamdetr.export.triton import TritonSettings
    from siamdetr.system.outputs import Read, Written, check_outputs, model_reads

    reads = model_reads("MODEL", model)
    other = [read for read in reads if not is_exported(model) or output.resolve() != model.resolve()]
    made = [
        Written("-o", output / name)
        for name in ("model.onnx", "model.engine", "manifest.json", "labels.txt", "infer.py")
    ]
    bundle = [Read("MODEL", model)] if is_exported(model) and output.resolve() != model.resolve() else []
    of_data = [] if data is None else [Read("--data", data)]
    extra = [] if timing_cache is None else [Written("--timing-cache", timing_cache)]
    name = TritonSettings().name
    repository = (
        [] if triton is None else [Written("--triton", triton / name), Written("--triton", triton / f"{name}_tensorrt")]
    )
    check_outputs([*other, *of_data], files=[*made, *extra])
    check_outputs([*of_data, *bundle], folders=[Written("-o", output)])
    check_outputs(
        [*reads, *of_data, Read("-o", output / "manifest.json")],
        files=[] if triton is None else [Written("--triton", triton / "client.py")],
        replaced=repository,
    )


def _write_triton(bundle: Path, folder: Path) -> None:
    from siamdetr.cli.console import console
    from siamdetr.export.triton import write_model_repository

    names = write_model_repository(bundle, folder)
    console.print(f"For Triton: {folder}, models {', '.join(names)}; client: {folder / 'client.py'}", markup=False)


def _add_engine(
    bundle: Path, output: Path, request: _EngineRequest, evidence: _Evidence, reference: Predictor | None = None
) -> None:
    """Build an engine into the bundle, or into a copy of it if `output` is another folder."""
    import dataclasses
    import shutil

    from siamdetr.cli.console import console
    from siamdetr.export.add_engine import add_engine
    from siamdetr.export.runtime import OnnxDetector
    from siamdetr.export.tensorrt import default_profile

    profile = default_profile(OnnxDetector(bundle).preprocessing, request.batch)
    if request.heights is not None:
        profile = dataclasses.replace(profile, height=numbers(request.heights, "--heights"))
    if request.widths is not None:
        profile = dataclasses.replace(profile, width=numbers(request.widths, "--widths"))
    if bundle.resolve() != output.resolve():
        shutil.copytree(bundle, output, dirs_exist_ok=True)
    with console.status("build the engine"):
        built = add_engine(
            output,
            profiles=[profile],
            options=request.options,
            reference=reference,
            samples=evidence.samples,
            truth=evidence.labelled,
            gate=evidence.gate,
        )
    counts = ", ".join(f"{count} {name}" for name, count in sorted(built.realised.multiplying.items()))
    console.print(
        f"{output / 'model.engine'}: {len(built.plan) / 2**20:.1f} MiB, {built.module} {built.version}, {built.seconds:.0f} s. "
        f"Multiplying layers: {counts} (read from the {built.realised.read_from}).",
        markup=False,
    )


def verdict(report: GateReport) -> str:
    """The measurements of the gate, in a sentence or two."""
    sizes = {f"{check.height}×{check.width}" for check in report.checks}
    batches = {check.batch_size for check in report.checks}
    text = (
        f"PASS: scores and boxes equal PyTorch's to {report.largest_error:.1e} at batches {sorted(batches)}, sizes "
        f"{', '.join(sorted(sizes))}, on {report.source} ({report.runtime})."
    )
    if report.ap is not None:
        text += f" AP {report.ap.exported:.4f}, PyTorch {report.ap.pytorch:.4f}, on {report.ap.images} images "
        text += f"(95 % interval of the loss: {report.ap.loss:.4f} ± {report.ap.half_width:.4f})."
    return " ".join([text, *report.doubts()])


def _data(model: Path, data: Path | None, split: str | None, data_format: str) -> DetectionIndex | None:
    from siamdetr.data.readers.recognise import open_dataset
    from siamdetr.training.run_folder import validation_part

    return validation_part(model) if data is None else open_dataset(data, format=data_format, split=split)


def numbers(text: str, flag: str) -> tuple[int, int, int]:
    """`"1,2,8"` → (1, 2, 8).

    Raises:
        typer.BadParameter: anything else.
    """
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise typer.BadParameter(f"{flag} got '{text}', expected MIN,OPT,MAX such as 1,2,8")
    least, usual, most = (int(part) for part in parts)
    return least, usual, most
