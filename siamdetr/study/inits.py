"""Names and colours of initialisations in reports and plots.

Scratch, or a pretext of the registry.
"""

from __future__ import annotations

from siamdetr.pretext.registry import PRETEXTS, name_of
from siamdetr.study.cell import SCRATCH

_SCRATCH_COLOUR, _OTHER = "#8b939c", "#b07aa1"


def init_name(init: str) -> str:
    """ "scratch", or the pretext's name."""
    return SCRATCH if init == SCRATCH else name_of(init)


def init_colour(init: str) -> str:
    """ "#rrggbb"; one colour for all that is neither scratch nor a pretext."""
    if init == SCRATCH:
        return _SCRATCH_COLOUR
    return PRETEXTS[init].colour if init in PRETEXTS else _OTHER
