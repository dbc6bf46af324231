"""The table of runtimes at the end of `siamdetr export --int8`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from siamdetr.export.timing.runtimes import RuntimeTime


def print_runtimes(rows: Sequence[RuntimeTime]) -> None:
    """Print speed and error of each graph in each runtime, and what to deploy on this machine."""
    from rich.table import Table

    from siamdetr.cli.console import console
    from siamdetr.export.timing.runtimes import advice

    table = Table(box=None)
    for name in ("precision", "runtime", "ms an image", "error of scores", "error of boxes"):
        table.add_column(name, justify="left" if name in ("precision", "runtime") else "right")
    for row in rows:
        errors = f"{row.score_error:.1e}", f"{row.box_error:.1e}"
        table.add_row(row.precision, row.backend, f"{row.milliseconds:.1f}", *errors)
    console.print(table)
    console.print(advice(rows), markup=False, soft_wrap=True)
