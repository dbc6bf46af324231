"""Names from files are shown, and never interpreted by a terminal or a spreadsheet."""

from __future__ import annotations

import io
import logging

import pytest

from siamdetr.cli.console import SafeConsole, bold, log_to_console
from siamdetr.system.plain_text import csv_cell, visible

HOSTILE = "a[/blue]\x1b[2J\x9b\u202eb"
SHOWN = "a[/blue]\\x1b[2J\\x9b\\u202eb"


def test_control_characters_are_escaped_and_others_kept() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible("Käse\n\t猫 [x]") == "Käse\n\t猫 [x]"


def test_the_console_obeys_no_name() -> None:
    written = io.StringIO()
    safe = SafeConsole(file=written, highlight=False, width=200, force_terminal=False)
    safe.print(f"{bold(HOSTILE)} done")
    safe.print(HOSTILE, markup=False)
    assert written.getvalue().splitlines() == [f"{SHOWN} done", SHOWN]


def test_the_log_obeys_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("siamdetr")
    before = (logger.handlers[:], logger.level, logger.propagate)
    log_to_console()
    try:
        logging.getLogger("siamdetr.x").warning("%s", HOSTILE)
    finally:
        logger.handlers[:], logger.level, logger.propagate = before
    written = capsys.readouterr().out
    assert "\x1b[2J" not in written
    assert "\\x1b[2J" in written


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\tx"])
def test_cells_are_no_formulas(name: str) -> None:
    assert csv_cell(name) == f"'{name}"
    assert csv_cell("cell") == "cell"
    assert csv_cell(-1.5) == -1.5
