"""Names from files as plain text, which no terminal or spreadsheet interprets."""

from __future__ import annotations

import unicodedata

_KEPT = "\n\t"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def visible(text: str) -> str:
    """The text with control characters, and those that change the writing direction, as escapes.

    An escape looks like \\x1b.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char in _KEPT or unicodedata.category(char) not in ("Cc", "Cf", "Cs") else _escape(char)
        for char in text
    )


def csv_cell(value: object) -> object:
    """A cell of a CSV file: texts that a spreadsheet would take for a formula begin with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
