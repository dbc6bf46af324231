"""The options of `siamdetr study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Name = Annotated[
    str,
    typer.Argument(help="data-efficiency, initialization, sensitivity, ablation, cost, convergence or qualitative."),
]

# The data.
Unlabelled = Annotated[
    list[Path], typer.Option("--unlabelled", help="Images to pretrain on; without: the data's train part.")
]
AllowOverlap = Annotated[
    bool, typer.Option("--allow-overlap", help="Pretrain also on --unlabelled images of the val or test part.")
]
ValSplit = Annotated[str | None, typer.Option("--val-split", help="The part that chooses the best weights.")]
TestSplit = Annotated[str | None, typer.Option("--test-split", help="The part that is scored.")]

# The grid.
Start = Annotated[
    str | None,
    typer.Option("--start", help="The model that every run starts from: a run, a file, or hf:ORG/NAME."),
]
Methods = Annotated[str | None, typer.Option("--methods", help="Compared with scratch, such as siamese,updetr,detreg.")]
Fractions = Annotated[str | None, typer.Option("--fractions", help="Of the labels, such as 0.1,0.3,1.")]
Seeds = Annotated[str | None, typer.Option("--seeds", help="Such as 0,1,2.")]
PretrainSteps = Annotated[int | None, typer.Option("--pretrain-steps", min=1, help="Of each method.")]
FinetuneSteps = Annotated[
    int | None, typer.Option("--finetune-steps", min=1, help="For every fraction; without: the preset's epochs.")
]
Evaluations = Annotated[int | None, typer.Option("--evaluations", min=1, help="Of each finetuning on the val part.")]
PretrainSet = Annotated[
    list[str], typer.Option("--pretrain-set", metavar="KEY=VALUE", help="A setting of pretraining only.")
]
FinetuneSet = Annotated[
    list[str], typer.Option("--finetune-set", metavar="KEY=VALUE", help="A setting of finetuning only.")
]
Fast = Annotated[bool, typer.Option("--fast", help="The whole path with a tiny detector in minutes, without a claim.")]

# Where and how the cells run.
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="Cells at the same time, each in its own process.")]
Ray = Annotated[
    str | None, typer.Option("--ray", metavar="ADDRESS", help="Run cells on a Ray cluster: auto, ray://…, or local.")
]
Cpus = Annotated[float, typer.Option("--cpus", min=0.1, help="--ray: cores that a cell occupies.")]
Gpus = Annotated[float, typer.Option("--gpus", min=0.0, help="--ray: GPUs that a cell occupies, such as 0.5.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the grid and an estimate of the time; run nothing but a few steps.")
]
