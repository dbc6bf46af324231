"""Docstrings in the form that griffe's Google parser expects.

A blank line before each section, and doctests under `Examples:`.
"""

from __future__ import annotations

import re

import griffe

SECTION = re.compile(r"\n(?=[ ]*(?:Args|Attributes|Example|Raises|Returns|Source|Yields):)")
DOCTEST = re.compile(r"Example:(?=\n\s*>>> )")


class DocstringSections(griffe.Extension):
    """Separate the sections of a docstring by blank lines, which griffe needs and our code leaves out."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite the docstring of an object that was loaded."""
        if obj.docstring is not None:
            obj.docstring.value = DOCTEST.sub("Examples:", SECTION.sub("\n\n", obj.docstring.value))
