"""`siamdetr presets`: the named recipes."""

from __future__ import annotations


def presets() -> None:
    """List the presets of `train` and `finetune`."""
    from rich.table import Table

    from siamdetr.cli.console import console
    from siamdetr.presets import PRESETS

    table = Table("preset", "for", "what", box=None, pad_edge=False)
    for name, preset in PRESETS.items():
        table.add_row(name, preset.stage, preset.description)
    console.print(table)
