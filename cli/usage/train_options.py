"""The options of `siamdetr train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Proposals = Annotated[
    list[Path], typer.Option("--proposals", help="A file that `siamdetr proposals` made; again for each shard.")
]
Method = Annotated[str | None, typer.Option("--method", help="siamese, updetr or detreg.")]
CacheViews = Annotated[
    int | None,
    typer.Option(
        "--cache-views",
        min=0,
        help="siamese: K fixed pairs of views per image, whose frozen features are computed once and kept on disk; steps are several "
        "times as fast. 0: new views at every read.",
    ),
]
