"""A kill before every file operation of a run: the resumed run equals an uninterrupted one."""

from __future__ import annotations

import csv
import functools
import hashlib
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from helpers.kills import in_own_processes, remains
from helpers.training_data import finetune_settings, pretrain_settings, write_data
from markupsafe import Markup
from matplotlib.figure import Figure
from safetensors import safe_open
from torch import Tensor

from siamdetr.training.checkpoints.checkpoint_file import read_checkpoint
from siamdetr.training.finetune import finetune
from siamdetr.training.pretrain import pretrain

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


class Run(Protocol):
    """A session of a run."""

    def __call__(self, folder: Path, *, resume: str | None) -> object:
        """Into a folder."""


def check_all_kills(run: Run, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    whole = tmp_path / "whole"
    killed = remains(lambda: run(whole, resume=None), whole, tmp_path / "killed")
    expected = left_behind(whole)
    assert len(killed) > 40
    in_own_processes([functools.partial(run, folder, resume="auto") for folder in killed], at_once=2)
    for folder in killed:
        found = left_behind(folder)
        assert found.keys() == expected.keys(), f"killed before operation {folder.name}"
        for name, content in expected.items():
            assert found[name] == content, f"{name}, killed before operation {folder.name}"


@pytest.fixture(autouse=True)
def quick_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures without content: drawing would take longer than all the rest."""
    monkeypatch.setattr("siamdetr.training.run_report.curves_svg", lambda *_, **__: Markup(""))
    monkeypatch.setattr("siamdetr.training.pictures.attention_figure", lambda *_: Figure((1, 1)))


@pytest.mark.timeout(900)  # about fifty sessions
def test_a_finetuning_killed_at_any_write_ends_as_if_nothing_had_been(data: Path, tmp_path: Path) -> None:
    def run(folder: Path, *, resume: str | None) -> None:
        finetune(finetune_settings(data, folder, steps=2, checkpoint_every=1, val_every=1.0, ema=0.5), resume=resume)

    check_all_kills(run, tmp_path)


@pytest.mark.timeout(900)
def test_a_pretraining_killed_at_any_write_ends_as_if_nothing_had_been(data: Path, tmp_path: Path) -> None:
    def run(folder: Path, *, resume: str | None) -> None:
        pretrain(pretrain_settings(data, folder, steps=1, method="updetr"), resume=resume)

    check_all_kills(run, tmp_path)
