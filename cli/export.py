"""`siamdetr export MODEL -o DIR`: write a bundle, compared with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from siamdetr.cli import options as common
from siamdetr.cli.usage.rules import is_exported
from siamdetr.cli.usage.unused_options import refuse_given

if TYPE_CHECKING:
    from siamdetr.data.index import DetectionIndex
    from siamdetr.export.gate.checks import GateReport
    from siamdetr.export.gate.images import Samples
    from siamdetr.export.options import Precision, Resize, Sampling
    from siamdetr.export.tensorrt import EngineOptions, TrtModule
    from siamdetr.inference.predictor import Predictor

_SAMPLES = 4


def export(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="A run folder or a .safetensors file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write the bundle to.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Images to compare on, with labels also by AP; default: the run's validation part."
        ),
    ] = None,
    split: common.Split = None,
    data_format: common.Format = "auto",
    images: Annotated[
        int, typer.Option("--images", min=1, help="How many images of the data AP and int8's scales are taken from.")
    ] = 100,
    precision: Annotated[
        str, typer.Option("--precision", help="Of the graph's arithmetic: fp32, fp16 or bf16.")
    ] = "fp32",
    int8: Annotated[bool, typer.Option("--int8", help="Eight-bit integers, their scales measured on --data.")] = False,
    resize: Annotated[
        str | None, typer.Option("--resize", help="fixed, or letterbox with padding; default: the model's own.")
    ] = None,
    imgsz: Annotated[str | None, typer.Option("--imgsz", metavar="N|H,W", help="The size of --resize.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Also give logits and boxes of all queries.")] = False,
    attention: Annotated[bool, typer.Option("--attention", help="Also give where the queries look.")] = False,
    sampling: Annotated[
        str, typer.Option("--sampling", help="Deformable attention: gather, or grid (GridSample).")
    ] = "gather",
    batch: Annotated[
        str, typer.Option("--batch", metavar="MIN,OPT,MAX", help="Batches to compare at, and to build an engine for.")
    ] = "1,2,5",
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", min=0.0, max=1.0, help="From which a box counts; default: the model's."),
    ] = None,
    gate: Annotated[
        bool, typer.Option("--gate/--no-gate", help="Compare with PyTorch; on unless switched off.")
    ] = True,
    trt: Annotated[
        bool, typer.Option("--trt", help="Also build a TensorRT engine; MODEL may then be a bundle.")
    ] = False,
    trt_module: Annotated[
        str | None, typer.Option("--trt-module", help="tensorrt, or tensorrt_rtx; default: what is installed.")
    ] = None,
    heights: Annotated[
        str | None,
        typer.Option("--heights", metavar="MIN,OPT,MAX", help="That an engine takes; default: the preprocessing's."),
    ] = None,
    widths: Annotated[str | None, typer.Option("--widths", metavar="MIN,OPT,MAX", help="The same of widths.")] = None,
    workspace: Annotated[
        float, typer.Option("--workspace", help="GiB that the engine's layers may use as scratch.")
    ] = 4.0,
    timing_cache: Annotated[
        Path | None, typer.Option("--timing-cache", help="A file that makes the next build of an engine faster.")
    ] = None,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="Let the engine's float32 multiplications round to 10 bits.")
    ] = False,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="The engine also runs with later TensorRTs; slower.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="The engine also runs on other GPUs from Ampere on; slower.")
    ] = False,
    triton: Annotated[
        Path | None, typer.Option("--triton", help="Write a model repository for NVIDIA Triton there, too.")
    ] = None,
) -> None:
    """Export to ONNX (any batch and image size); a file that disagrees with PyTorch is rejected."""
    from siamdetr.api import SiamDETR, kind_of
    from siamdetr.cli.console import console, progress
    from siamdetr.errors import ExportError
    from siamdetr.export.gate.checks import pytorch_reference
    from siamdetr.export.gate.images import samples_of
    from siamdetr.export.onnx import export_onnx
    from siamdetr.export.options import ExportOptions, exported_preprocessing
    from siamdetr.export.tensorrt import EngineOptions, find_module
    from siamdetr.models.deformable.attention import has_deformable_attention

    _check(model, output, data, timing_cache, triton)
    truth = _data(model, data, split, data_format)
    if truth is None:
        refuse_given(
            context, "images", "there are none: --data is not given, and MODEL is no run with a validation part"
        )
    samples = None if truth is None else samples_of(truth, images if int8 else _SAMPLES)
    labelled = None if truth is None or truth.num_boxes == 0 else truth.subset(range(min(images, len(truth))))
    shapes = (numbers(batch, "--batch"), heights, widths)
    engine = EngineOptions(
        module=cast("TrtModule | None", trt_module),
        workspace=workspace,
        timing_cache=timing_cache,
        tf32=tf32,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
    )
    if trt and kind_of(model) == "bundle":
        _add_engine(model, output, shapes, engine, samples=samples, truth=labelled, gate=gate)
        _write_triton(output, triton)
        return
    if is_exported(model):
        raise ExportError(
            f"{model}: exported already; a bundle folder takes an engine with --trt, anything else is exported anew from the "
            "run folder or .safetensors file"
        )
    if trt:
        find_module(engine.module)  # before the graph, which takes minutes
    opened = SiamDETR.load(model)
    deformable = has_deformable_attention(opened.detector)
    if trt and attention and deformable:
        raise ExportError(
            "--attention: TensorRT cannot read the attention of deformable models; leave it out, or make two exports"
        )
    if not deformable:
        refuse_given(context, "sampling", f"{opened.detector.settings.variant} has no deformable attention")
    size = common.image_size(imgsz)
    chosen = ExportOptions(
        precision=cast("Precision", "int8" if int8 else precision),
        resize=cast("Resize | None", resize),
        size=(size, size) if isinstance(size, int) else size,
        raw=raw,
        attention=attention,
        sampling=cast("Sampling", sampling),
        batch=shapes[0],
        threshold=threshold,
    )
    with progress("export") as update:
        result = export_onnx(
            opened, output, options=chosen, samples=samples, truth=labelled, gate=gate, progress=update
        )
    console.print(
        f"{result.onnx_file}: {result.num_bytes / 2**20:.1f} MiB, {result.num_nodes} nodes, {result.seconds:.0f} s. "
        + ("Not compared with PyTorch (--no-gate)." if result.gate is None else verdict(result.gate)),
        markup=False,
    )
    if trt:
        reference = pytorch_reference(opened, exported_preprocessing(opened.preprocessing, chosen))
        _add_engine(output, output, shapes, engine, samples=samples, truth=labelled, gate=gate, reference=reference)
    console.print(f"Without siamdetr and PyTorch: python {result.folder / 'infer.py'} IMAGE…", markup=False)
    _write_triton(result.folder, triton)


def _check(model: Path, output: Path, data: Path | None, timing_cache: Path | None, triton: Path | None) -> None:
    """Before the first write: nothing falls on the model or the data.

    An engine goes into the bundle that it is built from.
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


def _write_triton(bundle: Path, folder: Path | None) -> None:
    if folder is None:
        return
    from siamdetr.cli.console import console
    from siamdetr.export.triton import write_model_repository

    names = write_model_repository(bundle, folder)
    console.print(f"For Triton: {folder}, models {', '.join(names)}; client: {folder / 'client.py'}", markup=False)


def _add_engine(
    bundle: Path,
    output: Path,
    shapes: tuple[tuple[int, int, int], str | None, str | None],
    options: EngineOptions,
    *,
    samples: Samples | None,
    truth: DetectionIndex | None,
    gate: bool,
    reference: Predictor | None = None,
) -> None:
    """Build the engine of a bundle, or of a copy of it if `output` is another folder."""
    import dataclasses
    import shutil

    from siamdetr.cli.console import console
    from siamdetr.export.add_engine import add_engine
    from siamdetr.export.runtime import OnnxDetector
    from siamdetr.export.tensorrt import default_profile

    batch, heights, widths = shapes
    profile = default_profile(OnnxDetector(bundle).preprocessing, batch)
    if heights is not None:
        profile = dataclasses.replace(profile, height=numbers(heights, "--heights"))
    if widths is not None:
        profile = dataclasses.replace(profile, width=numbers(widths, "--widths"))
    if bundle.resolve() != output.resolve():
        shutil.copytree(bundle, output, dirs_exist_ok=True)
    with console.status("build the engine"):
        built = add_engine(
            output, profiles=[profile], options=options, reference=reference, samples=samples, truth=truth, gate=gate
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
