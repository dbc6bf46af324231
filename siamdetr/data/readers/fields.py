"""Fields of annotation files: a value of the wrong type is read as it was meant, or as None.

The reader then names the field.
"""

from __future__ import annotations

import math
from typing import Any

_TRUE, _FALSE = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no", "unspecified", ""})


def as_id(value: Any) -> int | str | None:
    """An id: an integer (also one written as 7.0) or a text.

    None: anything else, such as a flag or 1.5.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) or (isinstance(value, str) and value) else None


def as_integer(value: Any) -> int | None:
    """A 64-bit integer, also written as 7.0; None: anything else."""
    found = value if type(value) is int else as_id(value)
    return found if isinstance(found, int) and -(2**63) <= found < 2**63 else None


def as_number(value: Any) -> float | None:
    """A real number, also written as a text; integers beyond the range of floats become infinite.

    None for everything else.
    """
    if type(value) is float:  # nearly every number of a file
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except ValueError:
        return None


def as_flag(value: Any) -> bool | None:
    """A flag: true or false, 1 or 0, also as texts; false if not given. None: anything else."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, (int, float)):
        return bool(value) if value in (0, 1) else None
    text = value.strip().lower() if isinstance(value, str) else "?"
    return True if text in _TRUE else False if text in _FALSE else None
