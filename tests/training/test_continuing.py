"""Changes that a resumed run refuses, and those that it accepts when they are allowed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training_data import finetune_settings, write_data

from siamdetr.errors import CheckpointError, FolderInUseError
from siamdetr.model_file import read_metadata
from siamdetr.system.file_lock import sole_owner
from siamdetr.training.checkpoints.checkpoint_file import read_checkpoint, write_checkpoint
from siamdetr.training.describe_file import describe
from siamdetr.training.finetune import finetune


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, and a finished run of two steps on it."""
    folder = tmp_path_factory.mktemp("base")
    write_data(folder / "data", train=4, val=1)
    finetune(finetune_settings(folder / "data", folder / "run", steps=2, checkpoint_every=1))
    return folder


def again(base: Path, folder: Path, *, allow_changes: bool = False, **changes: Any) -> Any:
    """Resume a copy of the run."""
    if not folder.exists():
        shutil.copytree(base / "run", folder)
    settings = finetune_settings(base / "data", folder, **{"steps": 2, "checkpoint_every": 1, **changes})
    return finetune(settings, resume="auto", allow_changes=allow_changes)


def test_a_run_is_lengthened_with_another_rate_when_told_to(base: Path, tmp_path: Path) -> None:
    longer: dict[str, Any] = {"steps": 3, "optimizer": {"lr": 1e-3}, "schedule": {"name": "constant"}}
    with pytest.raises(CheckpointError, match=r"steps: 2 in the checkpoint, 3 now(.|\n)*--allow-changes"):
        again(base, tmp_path / "run", **longer)
    with pytest.raises(CheckpointError, match=r"batch_size: 2 in the checkpoint, 1 now") as caught:
        again(base, tmp_path / "run", allow_changes=True, batch_size=1)
    assert "--allow-changes" not in str(caught.value)
    assert again(base, tmp_path / "run", allow_changes=True, **longer).steps == 3
    state = read_checkpoint(tmp_path / "run" / "last.ckpt")
    group = state["optimizer_states"][0]["param_groups"][0]
    assert (group["initial_lr"], group["lr"]) == (1e-3, 1e-3)
    text = "from step 2 on: optimizer.lr 0.0001 → 0.001, schedule.name step → constant, steps 2 → 3"
    assert read_metadata(tmp_path / "run" / "last.safetensors")[1].lineage[-1].endswith(f"3 steps; {text}")
    assert describe(tmp_path / "run" / "last.ckpt")["changed on the way"] == [text]
    assert again(base, tmp_path / "run", **longer).steps == 3  # these are its settings now


def moved_boxes(document: dict[str, Any]) -> None:
    document["annotations"][0]["bbox"][0] += 1


def fewer_images(document: dict[str, Any]) -> None:
    gone = document["images"].pop()
    document["annotations"] = [box for box in document["annotations"] if box["image_id"] != gone["id"]]


def permuted_names(document: dict[str, Any]) -> None:
    first, second = document["categories"]
    first["name"], second["name"] = second["name"], first["name"]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (moved_boxes, "1 image with other labels"),
        (fewer_images, "4 images then, 3 now: 1 gone, 0 new"),
        (permuted_names, "classes [red, blue] then, [blue, red] now"),
        (None, "1 image with other contents, of 4 that were compared"),
    ],
)
def test_data_that_has_changed_is_named_and_refused(
    base: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], None] | None, said: str
) -> None:
    shutil.copytree(base, tmp_path / "base")
    annotations = tmp_path / "base" / "data" / "annotations" / "instances_train.json"
    settings = finetune_settings(tmp_path / "base" / "data", tmp_path / "run", steps=1)
    finetune(settings)
    if edit is None:
        shutil.copy(
            next((tmp_path / "base" / "data" / "val").glob("*.png")), tmp_path / "base" / "data" / "train" / "1.png"
        )
    else:
        for file in (
            (annotations, annotations.with_name("instances_val.json")) if edit is permuted_names else (annotations,)
        ):
            document = json.loads(file.read_text())
            edit(document)
            file.write_text(json.dumps(document))
    with pytest.raises(CheckpointError) as caught:
        finetune(settings, resume="auto")
    assert "the data is not that of the checkpoint:" in str(caught.value)
    assert f"train: {said}" in str(caught.value)
    assert finetune(settings, resume="auto", allow_changes=True).steps == 1


def test_a_folder_in_use_is_refused_with_its_owner(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base / "run", tmp_path / "run")
    with sole_owner(tmp_path / "run"), pytest.raises(FolderInUseError, match=r"in use by process \d+ on .* since "):
        again(base, tmp_path / "run")
    assert again(base, tmp_path / "run").steps == 2
    assert not (tmp_path / "run" / ".lock").exists()


def damaged(change: Callable[[dict[str, Any]], None], base: Path, folder: Path) -> Path:
    """A run folder whose only checkpoint was changed and sealed again."""
    shutil.copytree(base / "run", folder)
    content = read_checkpoint(folder / "last.ckpt")
    change(content)
    (folder / "previous.ckpt").unlink()
    (folder / "last.ckpt").unlink()
    write_checkpoint(content, folder / "last.ckpt")
    return folder


def _nan(content: dict[str, Any]) -> None:
    content["state_dict"]["detector.class_head.weight"][0] = float("nan")


def _expanded(content: dict[str, Any]) -> None:
    content["state_dict"]["detector.class_head.weight"] = torch.zeros(1).expand(10**9)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(change, id=str(number))
        for number, change in enumerate(
            [
                lambda c: c.pop("step"),
                lambda c: c.update(step="2"),
                lambda c: c["siamdetr"].pop("settings"),
                lambda c: c["siamdetr"].update(settings=[1]),
                lambda c: c["siamdetr"].update(stage=None),
                lambda c: c["siamdetr"].update(step=-1),
                lambda c: c["siamdetr"].update(format_version="x"),
                lambda c: c.pop("state_dict"),
                lambda c: c["state_dict"].popitem(),
                lambda c: c["state_dict"].update({"detector.class_head.weight": torch.zeros(1)}),
                lambda c: c.pop("optimizer_states"),
                lambda c: c.pop("callbacks"),
                lambda c: c.update(callbacks=3),
                _nan,
            ]
        )
    ],
)
def test_a_damaged_checkpoint_is_refused_in_a_line(
    base: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    folder = damaged(change, base, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        again(base, folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["optimizer_states"].clear(),
        lambda c: c["optimizer_states"][0]["param_groups"].pop(),
        lambda c: c["optimizer_states"][0]["state"].update({0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}}),
        lambda c: c["lr_schedulers"].clear(),
        lambda c: c["callbacks"].update({key: {} for key in c["callbacks"]}),
        lambda c: c.pop("pytorch-lightning_version"),
    ],
)
def test_parts_that_training_cannot_use_are_refused_in_a_line(
    base: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    folder = damaged(change, base, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        again(base, folder, steps=3, allow_changes=True)


def test_a_flipped_byte_anywhere_is_noticed(base: Path, tmp_path: Path) -> None:
    data = (base / "run" / "last.ckpt").read_bytes()
    path = tmp_path / "last.ckpt"
    for position in [*range(0, len(data), len(data) // 40), *range(len(data) - 100, len(data))]:
        spoilt = bytearray(data)
        spoilt[position] ^= 1
        path.write_bytes(spoilt)
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


def test_a_tensor_that_claims_more_than_it_holds_is_refused(base: Path, tmp_path: Path) -> None:
    content = {**read_checkpoint(base / "run" / "last.ckpt"), "sha256": ""}
    _expanded(content)
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"a tensor claims the size \[1000000000\] and does not hold it"):
        read_checkpoint(tmp_path / "last.ckpt")
