"""Commands on exported files start without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.data_sets import write_coco
from helpers.exported import export_variant
from PIL import Image

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of memory is read from /proc")
HEAVY = ("torch", "torchvision", "timm", "lightning", "onnx")
RUN = f"""
import json, pathlib, sys
from siamdetr.cli.__main__ import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
# Not ru_maxrss, which a process takes over from the one that started it.
peak = next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
loaded = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps({{"loaded": loaded, "megabytes": int(peak.split()[1]) / 1024}}))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_variant("conditional", tmp_path_factory.mktemp("conditional")).folder


def started(*arguments: str | Path) -> dict[str, Any]:
    """What a command loaded, and its peak of memory."""
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the peak of memory is counted in other units elsewhere"
)
def test_predicting_with_a_bundle_needs_no_pytorch(bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), "red").save(tmp_path / "one.jpg")
    found = started("predict", bundle, tmp_path / "one.jpg", "-o", tmp_path / "out")
    assert found["loaded"] == []
    assert found["megabytes"] < 250


def test_scoring_a_bundle_needs_no_pytorch(bundle: Path, tmp_path: Path) -> None:
    data = write_coco(tmp_path / "data")
    assert started("val", bundle, "--data", data)["loaded"] == []
