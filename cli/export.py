"""`siamdetr export MODEL -o DIR`: an ONNX bundle, compared with PyTorch before it is handed over."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_SAMPLES = 4


def export(
    model: Annotated[Path, typer.Argument(help="A run folder or a .safetensors file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write the bundle to.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Images to compare on; without: patterns of a fixed seed.")
    ] = None,
    triton: Annotated[
        Path | None, typer.Option("--triton", help="Write a model repository for NVIDIA Triton there, too.")
    ] = None,
) -> None:
    """Export to ONNX (opset 18, any batch and image size), checked against PyTorch on several sizes and batches."""
    from siamdetr.cli.console import console, progress
    from siamdetr.data.open import open_dataset
    from siamdetr.detector import SiamDETR
    from siamdetr.export.onnx import export_onnx

    images: list[Path] = []
    if data is not None:
        index = open_dataset(data)
        images = [index.path(i) for i in range(min(_SAMPLES, len(index)))]
    with progress("export") as update:
        result = export_onnx(SiamDETR.load(model), output, images=images, progress=update)
    sizes = {f"{check.height}×{check.width}" for check in result.parity.checks}
    batches = {check.batch_size for check in result.parity.checks}
    console.print(
        f"{result.onnx_file}: {result.num_bytes / 2**20:.1f} MiB, {result.num_nodes} nodes, {result.seconds:.0f} s. "
        f"Scores and boxes equal PyTorch's to {result.parity.largest_error:.1e} at batches {sorted(batches)}, "
        f"sizes {', '.join(sorted(sizes))}.",
        markup=False,
    )
    console.print(f"Without siamdetr and PyTorch: python {result.folder / 'infer.py'} IMAGE…", markup=False)
    if triton is not None:
        from siamdetr.export.triton import write_model_repository

        names = write_model_repository(result.folder, triton)
        console.print(f"For Triton: {triton}, models {', '.join(names)}; client: {triton / 'client.py'}", markup=False)
