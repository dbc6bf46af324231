"""`siamdetr benchmark MODEL…`: time and memory of models, and with labelled data their AP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from siamdetr.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from siamdetr.export.timing.benchmark import Measurement

_LEAST_WIDTH = 120  # of the table, so that a narrow terminal or a pipe truncates no text


def benchmark(
    models: Annotated[
        list[str],
        typer.Argument(help="Models, each as PATH or PATH@BACKEND, such as bundle@openvino.", metavar="MODEL…"),
    ],
    data: Annotated[
        Path | None, typer.Option("--data", help="Images to time on, with labels also AP; default: drawn patterns.")
    ] = None,
    split: options.Split = None,
    data_format: options.Format = "auto",
    images: Annotated[int, typer.Option("--images", min=1, help="How many images of the data AP is taken from.")] = 500,
    batches: Annotated[list[int], typer.Option("--batch", min=1, help="Images a call; may be given again.")] = [1],  # noqa: B006
    sizes: Annotated[list[str], typer.Option("--imgsz", metavar="N|H,W", help="Image size; may be given again.")] = [],  # noqa: B006
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Calls that count.")] = 20,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Calls before them.")] = 3,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="On the CPU; default: one a core.")] = None,
    device: options.Device = "cpu",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write benchmark.csv and .svg there.")
    ] = None,
) -> None:
    """Time preprocessing, network and postprocessing of models and backends, side by side."""
    from rich.console import Console

    from siamdetr.cli.console import console
    from siamdetr.export.timing.benchmark import write_csv, write_plot
    from siamdetr.system.outputs import Read, Written, check_outputs, model_reads

    if output is not None:
        models_read = [read for text in models for read in model_reads("MODEL", split_backend(text)[0])]
        check_outputs(
            [*models_read, *([] if data is None else [Read("--data", data)])],
            files=[Written("-o", output / name) for name in ("benchmark.csv", "benchmark.svg")],
        )
    found: list[Measurement] = []
    for text in models:
        found += _one(
            text, _index(data, split, data_format), images=images, batches=batches, sizes=sizes, rounds=rounds,
            warmup=warmup, threads=threads, device=device,
        )  # fmt: skip
    Console(highlight=False, width=max(console.width, _LEAST_WIDTH)).print(_table(found))
    if output is not None:
        write_csv(output / "benchmark.csv", found)
        write_plot(output / "benchmark.svg", found)
        console.print(f"{output / 'benchmark.csv'}, {output / 'benchmark.svg'}", markup=False)


def split_backend(text: str) -> tuple[Path, str | None]:
    """`"bundle@openvino"` → (bundle, openvino); a path without a backend at its end → (path, None)."""
    from siamdetr.api import Backend

    path, _, name = text.rpartition("@")
    return (Path(path), name) if path and name in get_args(Backend) else (Path(text), None)


def _index(data: Path | None, split: str | None, data_format: str) -> Any:
    from siamdetr.data.readers.recognise import open_dataset

    return None if data is None else open_dataset(data, format=data_format, split=split)


def _one(
    text: str,
    index: Any,
    *,
    images: int,
    batches: Sequence[int],
    sizes: Sequence[str],
    rounds: int,
    warmup: int,
    threads: int | None,
    device: str,
) -> list[Measurement]:
    """Make all measurements of one model."""
    import torch

    from siamdetr.api import Backend, load
    from siamdetr.cli.console import progress
    from siamdetr.evaluation.coco import evaluate
    from siamdetr.export.gate.images import drawn_samples, samples_of
    from siamdetr.export.timing.benchmark import measure, with_ap
    from siamdetr.system.processes import memory_mib

    path, backend = split_backend(text)
    if threads is not None:
        torch.set_num_threads(threads)
    before = memory_mib()
    model = load(path, device=device, backend=cast("Backend | None", backend), threads=threads)
    samples = drawn_samples() if index is None else samples_of(index, 50)
    found = []
    with progress(text) as update:
        for size in [options.image_size(one) for one in sizes] or [None]:
            for batch in batches:
                found.append(
                    measure(
                        model, samples.images, name=path.name, runtime=str(model.info.get("runtime", f"PyTorch {torch.__version__}")),
                        batch=batch, size=size, threads=threads, rounds=rounds, warmup=warmup, memory_before=before, progress=update,
                    )
                )  # fmt: skip
        if index is not None and index.num_boxes:
            found = with_ap(found, evaluate(model, index.subset(range(min(images, len(index)))), workers=0).ap)
    return found


def _table(found: Sequence[Measurement]) -> Any:
    from rich.table import Table

    table = Table(box=None)
    for name in (
        "model",
        "runtime",
        "batch",
        "size",
        "pre ms",
        "model ms",
        "post ms",
        "total ms",
        "p95",
        "images/s",
        "MiB",
        "AP",
    ):
        words = name in ("model", "runtime")
        table.add_column(name, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for one in found:
        table.add_row(
            one.model,
            one.runtime,
            str(one.batch),
            f"{one.height}×{one.width}",
            *(f"{value:.1f}" for value in (one.pre_p50, one.model_p50, one.post_p50, one.total_p50, one.total_p95)),
            f"{one.images_per_second:.1f}",
            "–" if one.memory_mib is None else f"{one.memory_mib:.0f}",
            "–" if one.ap is None else f"{one.ap:.4f}",
        )
    return table
