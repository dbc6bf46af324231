"""`siamdetr info FILE`: describe one of our files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def info(
    file: Annotated[
        Path, typer.Argument(help="A run folder, model file, checkpoint, exported model or proposal store.")
    ],
) -> None:
    """Describe any of our files: its kind, its origin, and what it can do."""
    from rich.markup import escape
    from rich.table import Table

    from siamdetr.cli.console import console
    from siamdetr.training.describe_file import describe

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in describe(file).items():
        table.add_row(escape(key.replace("_", " ")), escape(_text(value)))
    console.print(table)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_text(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return "\n".join(map(_text, value)) if any(" " in str(entry) for entry in value) else ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
