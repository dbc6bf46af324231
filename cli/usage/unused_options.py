"""Refuse an option that a call does not use, so that nobody believes that it had an effect."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

Values = Mapping[str, Any]  # of a call, by parameter name


@dataclass(frozen=True)
class Rule:
    """A condition under which some options of a command have an effect.

    Attributes:
        options: names of the command's parameters.
        used: whether a call with these values uses them.
        way: what to do instead, as the text after "--option: has no effect here: ".
    """

    options: tuple[str, ...]
    used: Callable[[Values], bool]
    way: str


def refusing_unused(command: Callable[..., None], rules: Sequence[Rule]) -> Callable[..., None]:
    """Wrap a command so that it first refuses options that it would not use.

    Raises:
        typer.BadParameter: on the call, for the first given option without effect; the text names the remedy.
    """
    signature = inspect.signature(command, eval_str=True)
    takes_context = "context" in signature.parameters

    def checked(**values: Any) -> None:
        context: typer.Context = values["context"]
        for rule in rules:
            given = [name for name in rule.options if is_given(context, name)]
            if given and not rule.used(values):
                raise unused(context, given[0], rule.way)
        command(**{name: value for name, value in values.items() if takes_context or name != "context"})

    functools.update_wrapper(checked, command)
    if not takes_context:
        parameter = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        signature = signature.replace(parameters=[*signature.parameters.values(), parameter])
        checked.__annotations__ = {**checked.__annotations__, "context": typer.Context}
    checked.__signature__ = signature  # type: ignore[attr-defined]
    return checked


def is_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter of the running command was given, and not left to its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


def refuse_given(context: typer.Context, name: str, way: str) -> None:
    """Refuse a given parameter that has no effect, as the files that were read show.

    Raises:
        typer.BadParameter: it was given.
    """
    if is_given(context, name):
        raise unused(context, name, way)


def refuse_twice(flags: Mapping[str, Any], assignments: Sequence[str]) -> None:
    """Refuse settings that are given both as a flag and with --set.

    Args:
        flags: setting to value; None: not given.
        assignments: KEY=VALUE, which would override the flags.
    Raises:
        typer.BadParameter: for the first such setting.
    """
    for assignment in assignments:
        key = assignment.partition("=")[0].strip()
        if flags.get(key) is not None:
            raise typer.BadParameter(
                f"{key}: given twice, as a flag ({flags[key]}) and as --set {assignment}; leave one out"
            )


def unused(context: typer.Context, name: str, way: str) -> typer.BadParameter:
    """The refusal of a parameter, under the name that was typed."""
    parameter = next(one for one in context.command.params if one.name == name)
    flag = max(parameter.opts, key=len)
    return typer.BadParameter(f"{flag}: has no effect here: {way}")


def unused_setting(assignment: str, way: str) -> typer.BadParameter:
    """The refusal of a --set that nothing reads."""
    return typer.BadParameter(f"--set {assignment}: has no effect here: {way}")
