"""Resolve settings from preset, YAML file, flags and `--set key=value`; later ones override."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from siamdetr.errors import SettingsError
from siamdetr.presets import preset_values
from siamdetr.settings.base import Settings
from siamdetr.settings.training import RunSettingsType


def resolve(
    cls: type[RunSettingsType],
    *,
    preset: str | None = None,
    file: str | Path | None = None,
    flags: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> RunSettingsType:
    """Resolve the settings of a run: preset ← YAML file ← flags ← `--set`; later ones override.

    Args:
        cls: PretrainSettings or FinetuneSettings.
        preset: a name of `siamdetr.presets`; None: the class's own defaults.
        file: a YAML file of nested settings, such as a run's config.yaml.
        flags: dotted keys, such as {"optimizer.lr": 1e-4}; None values are flags not given and are left out.
        assignments: "optimizer.clip=0.1" texts; the value is read as YAML.
    Raises:
        SettingsError: an unknown preset or key (with the nearest one), or an invalid value.
    """
    try:
        values = preset_values(preset, stage=cls.stage) if preset is not None else {}
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if file is not None:
        values = _merged(values, _read_yaml(Path(file), cls))
    for key, value in (flags or {}).items():
        if value is not None:
            _assign(values, key, value, cls)
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"--set got '{text}', expected KEY=VALUE, such as optimizer.clip=0.1")
        _assign(values, key.strip(), _scalar(value), cls)
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise SettingsError(explain(error)) from None


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two nested mappings."""
    found: list[str] = []
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}")
    return found


def _leaves(cls: type[Settings], prefix: str = "") -> list[str]:
    """Every dotted key of a settings class, branches included."""
    keys: list[str] = []
    for name, below in cls.branches().items():
        keys.append(prefix + name)
        keys += [] if below is None else _leaves(below, f"{prefix}{name}.")
    return keys


def _check_key(key: str, cls: type[Settings], source: str) -> None:
    known = _leaves(cls)
    if key in known:
        return
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:  # perhaps the branch is missing: lr for optimizer.lr
        names = [name.rpartition(".")[2] for name in known]
        last = difflib.get_close_matches(key.rpartition(".")[2], names, n=1, cutoff=0.6)
        near = [name for name in known if last and name.rpartition(".")[2] == last[0]][:1]
    hint = f"; did you mean '{near[0]}'?" if near else f"; there are: {', '.join(cls.branches())}"
    raise SettingsError(f"{source}no such setting '{key}'{hint}")


def _assign(values: dict[str, Any], key: str, value: Any, cls: type[Settings]) -> None:
    _check_key(key, cls, "")
    *branches, leaf = key.split(".")
    for branch in branches:
        values = values.setdefault(branch, {})
    values[leaf] = value


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _scalar(text: str) -> Any:
    """Parse a value as YAML; 1e-4 is a number here, whereas YAML 1.1 reads it as text."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _read_yaml(path: Path, cls: type[Settings]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such settings file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: got a {type(values).__name__}, expected settings, such as 'batch_size: 4'")
    for key in _dotted(values):
        _check_key(key, cls, f"{path}: ")
    return values


def _dotted(values: Mapping[Any, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in values.items():
        keys += _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"]
    return keys


def explain(error: ValidationError) -> str:
    """The errors of pydantic, one readable line each."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("function-"))
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            lines.append(f"setting '{where}' is missing")
        elif problem["type"] == "value_error":
            lines.append(f"{where}: {message}" if where else message)
        else:
            lines.append(f"setting '{where}' got {problem['input']!r}: {message[:1].lower()}{message[1:]}")
    return "\n".join(lines)
