"""Settings of a pretraining run; those of each pretext stand under its own key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict, Field, SerializeAsAny, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from siamdetr.pretext.registry import PRETEXTS
from siamdetr.settings.base import Settings
from siamdetr.settings.pretext import PretextSettings
from siamdetr.settings.training import RunSettings, Stage

Kind = TypeVar("Kind", bound=PretextSettings)


class PretrainSettings(RunSettings):
    """Self-supervised pretraining: `siamdetr train`, `siamdetr pretrain`.

    Besides the fields below there is one for each entry of `PRETEXTS`, under its key: `of_method` and `of` read them.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, SerializeAsAny[PretextSettings]]
    stage: ClassVar[Stage] = "pretrain"

    method: str = Field("siamese", description="siamese, updetr or detreg; its settings stand under its name")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the averaged weights; 0: none")

    @classmethod
    def branches(cls) -> Mapping[str, type[Settings] | None]:
        """See `Settings`; with those of the pretexts."""
        return {**super().branches(), **{key: entry.settings for key, entry in PRETEXTS.items()}}

    @model_validator(mode="before")
    @classmethod
    def _read_the_pretexts(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return values | {key: _validated(key, values.get(key, {})) for key in PRETEXTS}

    @field_validator("method")
    @classmethod
    def _check_method(cls, value: str) -> str:
        return check_method(value)

    @property
    def of_method(self) -> PretextSettings:
        """The settings of the method."""
        found: PretextSettings = getattr(self, self.method)
        return found

    def of(self, kind: type[Kind]) -> Kind:
        """The settings of a pretext, by their class."""
        found: Kind = next(value for value in self.__pydantic_extra__.values() if isinstance(value, kind))
        return found


def check_method(value: str) -> str:
    """The key of a pretext.

    Raises:
        ValueError: there is none of that name.
    """
    if value in PRETEXTS:
        return value
    *others, last = (f"'{key}'" for key in PRETEXTS)
    expected = f"{', '.join(others)} or {last}" if others else last
    raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})


def _validated(key: str, value: Any) -> Any:
    """The settings under a pretext's key; an error names the key and the setting below it."""
    kind = PRETEXTS[key].settings
    try:
        return value if isinstance(value, kind) else kind.model_validate(value)
    except ValidationError as error:
        details = [
            InitErrorDetails(
                type=PydanticCustomError(found["type"], "{text}", {"text": found["msg"]}),
                loc=(key, *found["loc"]),
                input=found["input"],
            )
            for found in error.errors()
        ]
        raise ValidationError.from_exception_data("PretrainSettings", details) from None
