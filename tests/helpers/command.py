"""`siamdetr …` in this process, as a person types it."""

from __future__ import annotations

import sys

import pytest

from siamdetr.cli.__main__ import main


def run_command(
    *arguments: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str]:
    """Exit code and output of `siamdetr ARGUMENTS`; white space is folded."""
    monkeypatch.setattr(sys, "argv", ["siamdetr", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, " ".join((captured.out + captured.err).split())
