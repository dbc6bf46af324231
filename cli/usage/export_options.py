"""The options of `siamdetr export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelPath = Annotated[Path, typer.Argument(help="A run folder or a .safetensors file.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="The folder to write the bundle to.")]

# What the export is compared on.
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Images to compare on, with labels also by AP; default: the run's validation part."),
]
Images = Annotated[
    int, typer.Option("--images", min=1, help="How many images of the data AP and int8's scales are taken from.")
]
Gate = Annotated[bool, typer.Option("--gate/--no-gate", help="Compare with PyTorch; on unless switched off.")]
Batch = Annotated[
    str, typer.Option("--batch", metavar="MIN,OPT,MAX", help="Batches to compare at, and to build an engine for.")
]

# The graph.
Precision = Annotated[str, typer.Option("--precision", help="Of the graph's arithmetic: fp32, fp16 or bf16.")]
Int8 = Annotated[bool, typer.Option("--int8", help="Eight-bit integers, their scales measured on --data.")]
Resize = Annotated[
    str | None, typer.Option("--resize", help="fixed, or letterbox with padding; default: the model's own.")
]
ImageSize = Annotated[str | None, typer.Option("--imgsz", metavar="N|H,W", help="The size of --resize.")]
Raw = Annotated[bool, typer.Option("--raw", help="Also give logits and boxes of all queries.")]
Attention = Annotated[bool, typer.Option("--attention", help="Also give the attention maps of the detections.")]
Sampling = Annotated[str, typer.Option("--sampling", help="Deformable attention: gather, or grid (GridSample).")]
Threshold = Annotated[
    float | None,
    typer.Option("--threshold", min=0.0, max=1.0, help="Lowest score of a detection; default: the model's."),
]

# The TensorRT engine.
Trt = Annotated[bool, typer.Option("--trt", help="Also build a TensorRT engine; MODEL may then be a bundle.")]
TrtModule = Annotated[
    str | None, typer.Option("--trt-module", help="tensorrt, or tensorrt_rtx; default: what is installed.")
]
Heights = Annotated[
    str | None,
    typer.Option(
        "--heights", metavar="MIN,OPT,MAX", help="Image heights that the engine takes; default: the preprocessing's."
    ),
]
Widths = Annotated[
    str | None,
    typer.Option(
        "--widths", metavar="MIN,OPT,MAX", help="Image widths that the engine takes; default: the preprocessing's."
    ),
]
Workspace = Annotated[float, typer.Option("--workspace", help="GiB that the engine's layers may use as scratch.")]
TimingCache = Annotated[
    Path | None, typer.Option("--timing-cache", help="A file that makes the next build of an engine faster.")
]
Tf32 = Annotated[bool, typer.Option("--tf32", help="Let the engine's float32 multiplications round to 10 bits.")]
VersionCompatible = Annotated[
    bool, typer.Option("--version-compatible", help="The engine also runs with later TensorRTs; slower.")
]
HardwareCompatible = Annotated[
    bool, typer.Option("--hardware-compatible", help="The engine also runs on other GPUs from Ampere on; slower.")
]

Triton = Annotated[
    Path | None, typer.Option("--triton", help="Also write a model repository for NVIDIA Triton to this folder.")
]
