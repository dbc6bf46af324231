"""Settings: typed, frozen, closed. An unknown key is an error that names its nearest neighbour."""

from __future__ import annotations

import difflib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


def to_json(value: Settings) -> Any:
    """Settings as plain JSON values: what goes into YAML and checkpoints."""
    return json.loads(value.model_dump_json())


class Settings(BaseModel):
    """Base of every settings class: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), list(cls.model_fields), n=1, cutoff=0.4)
                    hint = f"; did you mean '{near[0]}'?" if near else f"; there are: {', '.join(cls.model_fields)}"
                    raise ValueError(f"no such setting '{key}'{hint}")
        return values
