"""Base of all settings: typed, frozen, closed. An unknown key is an error that names the nearest one."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


def to_json(value: Settings) -> Any:
    """Settings as plain JSON values, for YAML and checkpoints."""
    return json.loads(value.model_dump_json())


class Settings(BaseModel):
    """Base of every settings class: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @classmethod
    def branches(cls) -> Mapping[str, type[Settings] | None]:
        """Every key: the settings class below it, or None where its value is no settings."""
        kinds = {key: field.annotation for key, field in cls.model_fields.items()}
        return {
            key: kind if isinstance(kind, type) and issubclass(kind, Settings) else None for key, kind in kinds.items()
        }

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest(cls, values: Any) -> Any:
        if isinstance(values, dict):
            known = list(cls.branches())
            for key in values:
                if key not in known:
                    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
                    hint = f"; did you mean '{near[0]}'?" if near else f"; there are: {', '.join(known)}"
                    raise ValueError(f"no such setting '{key}'{hint}")
        return values
