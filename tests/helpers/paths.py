"""Places in the repository."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"
SHARED = "SIAMDETR_TESTS_SHARED"  # the variable that names a folder which all processes of a session share
