"""A kill before every file operation of a run: the resumed run equals an uninterrupted one."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.kill_sessions import finetuning, leave_and_resume, pretraining
from helpers.training_data import write_data
from safetensors import safe_open
from torch import Tensor

from siamdetr.training.checkpoints.checkpoint_file import read_checkpoint

CLOCK = {"report.html", "tensorboard"}  # they hold times


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), train=4, val=1)


def left_behind(folder: Path) -> dict[str, Any]:
    """Every file of a run, as far as it does not depend on the clock."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name.partition("/")[0] in CLOCK:
            continue
        if path.suffix == ".ckpt":
            found[name] = plain(read_checkpoint(path))
        elif path.suffix == ".safetensors":
            found[name] = model(path)
        elif name == "config.yaml":
            found[name] = path.read_text().replace(str(folder), "RUN")
        elif name == "metrics.csv":
            with path.open(newline="") as file:
                found[name] = [
                    {k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)
                ]
        else:
            found[name] = path.read_bytes()
    return found


def model(path: Path) -> Any:
    """A model file; the order of its metadata is safetensors' own."""
    with safe_open(str(path), framework="pt") as file:
        names = sorted(file.keys())
        return file.metadata(), [(name, plain(file.get_tensor(name))) for name in names]


def plain(tree: Any) -> Any:
    """A checkpoint whose tensors compare with ==.

    Left out are the folder's name and Lightning's counter, which starts anew in every session.
    """
    if isinstance(tree, Tensor):
        return (tree.dtype, tuple(tree.shape), hashlib.sha256(tree.numpy().tobytes()).digest())
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items() if key not in ("output", "global_step")}
    return [plain(value) for value in tree] if isinstance(tree, list | tuple) else tree


def check_all_kills(session: Callable[..., object], data: Path, tmp_path: Path) -> None:
    leave_and_resume(session, data, tmp_path)
    expected, killed = left_behind(tmp_path / "whole"), sorted((tmp_path / "killed").iterdir())
    assert len(killed) > 30
    for folder in killed:
        found = left_behind(folder)
        assert found.keys() == expected.keys(), f"killed before operation {folder.name}"
        for name, content in expected.items():
            assert found[name] == content, f"{name}, killed before operation {folder.name}"


@pytest.mark.timeout(900)  # about forty sessions
def test_a_finetuning_killed_at_any_write_ends_as_if_nothing_had_been(data: Path, tmp_path: Path) -> None:
    check_all_kills(finetuning, data, tmp_path)


@pytest.mark.timeout(900)
def test_a_pretraining_killed_at_any_write_ends_as_if_nothing_had_been(data: Path, tmp_path: Path) -> None:
    check_all_kills(pretraining, data, tmp_path)
