"""Open the model of a command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from siamdetr.api import Backend, Model, SiamDETR


def open_model(path: Path, *, device: str, backend: str | None, compiled: bool = False) -> SiamDETR | Model:
    """Open a model as `siamdetr.load` does, compiled if asked for.

    Raises:
        SettingsError: torch.compile does not work here.
        ValueError: as of `siamdetr.load`.
    """
    from siamdetr.api import load

    opened = load(path, device=device, backend=cast("Backend | None", backend))
    if not compiled:
        return opened
    from siamdetr.pytorch_model import SiamDETR

    assert isinstance(opened, SiamDETR)  # the rules of the commands refuse exported files
    return opened.compile()
