"""Named recipes as plain nested dicts.

Those of the papers are in `presets/papers.py`, our own small ones in `presets/small.py`.
"""

from __future__ import annotations

import copy
import difflib
from typing import Any, Literal

from siamdetr.presets.papers import PAPERS
from siamdetr.presets.preset import Preset
from siamdetr.presets.small import SMALL

__all__ = ["PRESETS", "Preset", "preset_values"]

Stage = Literal["pretrain", "finetune"]

PRESETS: dict[str, Preset] = {**PAPERS, **SMALL}


def preset_values(name: str, *, stage: Stage) -> dict[str, Any]:
    """A copy of a preset's nested settings for one stage.

    Raises:
        ValueError: there is no preset of that name, or it has nothing for that stage.
    """
    fitting = [key for key, preset in PRESETS.items() if getattr(preset, stage) is not None]
    if name not in PRESETS:
        near = difflib.get_close_matches(name, fitting, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else f"; for {stage} there are: {', '.join(fitting)}"
        raise ValueError(f"no such preset '{name}'{hint}")
    if name not in fitting:
        raise ValueError(f"preset '{name}' is not for {stage}; for {stage} there are: {', '.join(fitting)}")
    return copy.deepcopy(getattr(PRESETS[name], stage))
