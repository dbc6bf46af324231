"""`siamdetr finetune`: train a detector on labelled images, from a pretrained run or from scratch."""

from __future__ import annotations

from typing import Annotated

import typer

from siamdetr.cli import options
from siamdetr.cli.usage.unused_options import refuse_given, refuse_twice

Fraction = Annotated[float | None, typer.Option("--fraction", help="Share of the labelled images to use, such as 0.1.")]
Augment = Annotated[
    str | None, typer.Option("--augment", help="none, flip, detr, or strong (mosaic, copy-paste, colour, …).")
]
BackboneRate = Annotated[float | None, typer.Option("--lr-backbone", min=0.0, help="Learning rate of the backbone.")]


def finetune(
    context: typer.Context,
    data: options.DataList,
    init: options.Init = None,
    preset: options.Preset = None,
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    batch_size: options.BatchSize = None,
    imgsz: options.ImageSize = None,
    fraction: Fraction = None,
    augment: Augment = None,
    freeze: Annotated[str | None, typer.Option("--freeze", help="none, backbone, or body (all but the heads).")] = None,
    output: options.Output = None,
    resume: options.Resume = None,
    allow_changes: options.AllowChanges = False,
    lr: options.LearningRate = None,
    lr_backbone: BackboneRate = None,
    grad_accum: options.GradAccum = None,
    precision: options.Precision = None,
    compiled: options.Compile = False,
    seed: options.Seed = None,
    workers: options.Workers = None,
    device: options.RunDevice = None,
    data_format: options.RunFormat = None,
    split: options.Split = None,
    val_split: Annotated[str | None, typer.Option("--val-split", help="The part to validate on.")] = None,
    strict: options.Strict = False,
    overfit_batch: Annotated[
        bool, typer.Option("--overfit-batch", help="Train on the first batch alone: the loss must fall.")
    ] = False,
    config: options.Config = None,
    assignments: options.Set = [],  # noqa: B006 - typer copies it
) -> None:
    """Finetune a detector on labelled images, from a pretrained run (--init) or from scratch."""
    from siamdetr.cli.console import RunProgress
    from siamdetr.settings.resolve import resolve
    from siamdetr.settings.training import FinetuneSettings
    from siamdetr.training.finetune import finetune as run_finetune

    flags = {
        "data.paths": [str(path) for path in data],
        "data.format": data_format,
        "data.split": split,
        "data.val_split": val_split,
        "data.strict": strict or None,
        "data.fraction": fraction,
        "init": init,
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "images.size": options.image_size(imgsz),
        "images.augment": augment,
        "freeze": freeze,
        "output": None if output is None else str(output),
        "optimizer.lr": lr,
        "optimizer.lr_backbone": lr_backbone,
        "grad_accum": grad_accum,
        "precision": precision,
        "compile": compiled or None,
        "seed": seed,
        "workers": workers,
        "device": device,
        "overfit_batch": overfit_batch or None,
    }
    refuse_twice(flags, assignments)
    settings = resolve(FinetuneSettings, preset=preset, file=config, flags=flags, assignments=assignments)
    if settings.freeze != "none":
        refuse_given(
            context,
            "lr_backbone",
            f"freeze={settings.freeze} keeps the backbone as it is; give --freeze none to train it",
        )
    options.check_run_outputs(settings.data, settings.output, init=settings.init, config=config, resume=resume)
    with RunProgress() as progress:
        result = run_finetune(settings, progress=progress, resume=resume, allow_changes=allow_changes)
    options.next_steps(
        result.folder, f"val {{run}} --data {data[0]}", "predict {run} IMAGES…", "export {run} -o BUNDLE"
    )
