"""YAML in which every scalar is the text of the file.

`no` is a class name, not False, and 007 is not 7.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import yaml

from siamdetr.errors import DataError

Tree: TypeAlias = "str | list[Tree] | dict[str, Tree]"

NOT_GIVEN = frozenset({"", "~", "null", "Null", "NULL"})  # texts that YAML reads as null


def read_yaml_text(file: Path, expected: str) -> Tree:
    """Parse a file; nothing in it is executed.

    Args:
        file: UTF-8.
        expected: last part of every error message.
    Raises:
        DataError: not readable, not YAML (with the line), or a repeated key.
    """
    try:
        node = yaml.compose(file.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
        return "" if node is None else _plain(node, {}, file, expected)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise DataError(f"{file}: {place}{error.problem}; {expected}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read ({error}); {expected}") from error


def _plain(node: yaml.Node, done: dict[int, Tree], file: Path, expected: str) -> Tree:
    """A node as text, list or dictionary; an alias is the object that its anchor gave."""
    if id(node) in done:
        return done[id(node)]
    if isinstance(node, yaml.SequenceNode):
        items: list[Tree] = []
        done[id(node)] = items
        items += [_plain(item, done, file, expected) for item in node.value]
        return items
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Tree] = {}
        done[id(node)] = mapping
        for key, value in node.value:
            name = str(key.value)
            if name in mapping:
                raise DataError(f"{file}: line {key.start_mark.line + 1}: the key '{name}' stands twice; {expected}")
            mapping[name] = _plain(value, done, file, expected)
        return mapping
    return str(node.value)
