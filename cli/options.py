"""Options that several commands share, so that a flag means the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siamdetr.system.outputs import Read, Written, check_outputs, model_reads

if TYPE_CHECKING:
    from siamdetr.settings.training import DataSettings

_RUN_FILES = ("config.yaml", "metrics.csv", "last.ckpt", "best.safetensors", "last.safetensors", "report.html")

Data = Annotated[Path, typer.Option("--data", help="A data set: COCO, PASCAL VOC or YOLO, or a folder of images.")]
DataList = Annotated[list[Path], typer.Option("--data", help="A data set or a folder of images; may be given again.")]
Format = Annotated[str, typer.Option("--format", help="auto, coco, voc, yolo or folder.")]
# Of runs: without the flag, preset and file decide.
RunFormat = Annotated[str | None, typer.Option("--format", help="auto, coco, voc, yolo or folder.")]
RunDevice = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Split = Annotated[str | None, typer.Option("--split", help="The part to use, such as val or test.")]
ModelPath = Annotated[Path, typer.Argument(help="A run folder, a .safetensors file or an exported file.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Backend = Annotated[
    str | None,
    typer.Option(
        "--backend",
        help="pytorch, onnxruntime, openvino, tensorrt, or auto: the fastest here, timed once. Default: as the file is.",
    ),
]
Workers = Annotated[int | None, typer.Option("--workers", min=0, help="Processes that load images.")]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Images per step (pretraining: pairs of views).")
]
Init = Annotated[
    str | None,
    typer.Option(
        "--init",
        metavar="PATH|hf:ORG/NAME",
        help="The model to start from: a run folder, a model file, a folder of transformers' save_pretrained, or a name of the "
        "Hugging Face hub; without: from scratch.",
    ),
]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="The folder to write.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse a data set with problems instead of skipping them.")]
Preset = Annotated[str | None, typer.Option("--preset", help="A named recipe; `siamdetr presets` lists them.")]
Config = Annotated[Path | None, typer.Option("--config", help="A YAML file of settings, between preset and flags.")]
ImageSize = Annotated[
    str | None, typer.Option("--imgsz", metavar="N|H,W", help="Shortest side, or a fixed height,width.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of data order, augmentation and initial weights.")]
Precision = Annotated[
    str | None, typer.Option("--precision", help="fp32, bf16, fp16, or auto: the faster here of fp32 and bf16.")
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the detector with torch.compile; needs a C++ compiler.")
]
LearningRate = Annotated[float | None, typer.Option("--lr", min=0.0, help="Learning rate.")]
GradAccum = Annotated[
    int | None, typer.Option("--grad-accum", min=1, help="Batches whose gradients are accumulated into one step.")
]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over the data.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps, instead of --epochs.")]
Resume = Annotated[str | None, typer.Option("--resume", metavar="auto|PATH", help="Continue from the last checkpoint.")]
AllowChanges = Annotated[
    bool,
    typer.Option(
        "--allow-changes", help="--resume: continue with another length or rate, or other data; the lineage says so."
    ),
]
Set = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as optimizer.clip=0.1.")]


def image_size(text: str | None) -> int | tuple[int, int] | None:
    """`"640"` → 640 (shortest side), `"480,640"` → (480, 640) (height, width), None → None.

    Raises:
        typer.BadParameter: anything else.
    """
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts) or len(parts) > 2 or not all(int(part) > 0 for part in parts):
        raise typer.BadParameter(
            f"--imgsz got '{text}', expected one number of pixels or HEIGHT,WIDTH, such as 640 or 480,640"
        )
    numbers = [int(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def check_run_outputs(
    data: DataSettings, output: str | None, *, init: str | None, config: Path | None, resume: str | None
) -> None:
    """Check that a run folder does not lie in its data, and that its files overwrite nothing it reads.

    Raises:
        OutputError: before the first write.
    """
    folder = Path(output or "runs")
    reads = [Read("--data", Path(path)) for path in (*data.paths, *data.val_paths)]
    inputs = [Read("--proposals", Path(path)) for path in data.proposals]
    inputs += [] if init is None else model_reads("--init", Path(init))
    inputs += [] if config is None or resume is not None else [Read("--config", config)]
    made = [] if output is None else [Written("-o", folder / name) for name in _RUN_FILES]
    check_outputs(inputs, files=made)
    check_outputs(reads, folders=[Written("-o", folder)])


def next_steps(run: Path, *commands: str) -> None:
    """Print the run folder and the commands to type next; `{run}` stands for the folder."""
    from siamdetr.cli.console import bold, console

    console.print(f"\nDone: {bold(run)} (open {bold(run / 'report.html')}). Next:")
    for command in commands:
        console.print(f"  siamdetr {command.format(run=run)}", markup=False)
