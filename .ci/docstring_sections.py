"""Docstrings as griffe's Google parser wants them: a blank line before each section, and doctests under `Examples:`."""

from __future__ import annotations

import re

import griffe

SECTION = re.compile(r"\n(?=[ ]*(?:Args|Attributes|Example|Raises|Returns|Source|Yields):)")
DOCTEST = re.compile(r"Example:(?=\n\s*>>> )")


class DocstringSections(griffe.Extension):
    """Our docstrings put sections directly below each other, which reads well in code and is no section for griffe."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite the docstring of an object that was loaded."""
        if obj.docstring is not None:
            obj.docstring.value = DOCTEST.sub("Examples:", SECTION.sub("\n\n", obj.docstring.value))
