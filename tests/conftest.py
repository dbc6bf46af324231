"""What all tests share: one thread for PyTorch, and the real data where there is any."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch

sys.path.insert(
    0, str(Path(__file__).parent)
)  # so that tests find `helpers`; the importlib mode of pytest adds nothing
torch.set_num_threads(1)  # the tests are small: more threads only wait for each other

BESIDE_THE_PROJECT = Path(__file__).parents[1].parent / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--write-docs` lets tests write what they show into the documents, instead of comparing."""
    parser.addoption(
        "--write-docs", action="store_true", help="write docs/detectors.md from tests/models/test_detectors.py"
    )


def pytest_configure(config: pytest.Config) -> None:
    """A folder for what the processes of a session share; made by the first, removed with it."""
    from helpers.paths import SHARED

    if hasattr(config, "workerinput"):
        return
    folder = tempfile.TemporaryDirectory(prefix="siamdetr-tests-")
    os.environ[SHARED] = folder.name
    config.add_cleanup(folder.cleanup)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with bccd/ (PASCAL VOC) and coco-mini/ (COCO); the test is skipped where it is missing."""
    folder = Path(os.environ.get("SIAMDETR_DATA", BESIDE_THE_PROJECT))
    missing = [name for name in ("bccd", "coco-mini") if not (folder / name).is_dir()]
    if missing:
        pytest.skip(f"real data {' and '.join(missing)} not in {folder}; set SIAMDETR_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a small random detector: what the tests of the server serve."""
    from helpers.tiny_models import tiny_model

    from siamdetr.export.onnx import export_onnx

    return export_onnx(tiny_model(), tmp_path_factory.mktemp("tiny") / "bundle").folder


@pytest.fixture(scope="session")
def letterbox_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same detector, exported with `--resize letterbox`: a graph that takes `valid_sizes`."""
    from helpers.tiny_models import tiny_model

    from siamdetr.export.onnx import export_onnx
    from siamdetr.export.options import ExportOptions

    options = ExportOptions(resize="letterbox", size=(64, 96))
    return export_onnx(tiny_model(), tmp_path_factory.mktemp("letterbox") / "bundle", options=options).folder
