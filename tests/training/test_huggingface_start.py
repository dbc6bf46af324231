"""Runs that start from a Hugging Face checkpoint: what they take over, and what starts afresh."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import yaml
from helpers.huggingface import make, saved
from helpers.training_data import SIDE, finetune_settings, pretrain_settings, write_data

from siamdetr.model_file import load_model
from siamdetr.official.huggingface.read import import_huggingface
from siamdetr.training.finetune import finetune
from siamdetr.training.pretrain import pretrain


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = saved(make("conditional"), tmp_path_factory.mktemp("checkpoint"))
    text = (folder / "preprocessor_config.json").read_text()
    changed = text.replace('"shortest_edge": 800', f'"shortest_edge": {SIDE}').replace("0.485", "0.5")
    (folder / "preprocessor_config.json").write_text(changed)
    return folder


def test_finetuning_takes_over_all_but_the_class_head(
    data: Path, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = finetune_settings(
        data, tmp_path / "run", steps=1, init=str(checkpoint), detector={}, images={"augment": "none"},
        optimizer={"lr": 1e-9, "lr_backbone": 0, "weight_decay": 0},
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        result = finetune(settings)
    assert "starting afresh: class_head." in caplog.text
    detector, metadata = load_model(result.folder)
    source = import_huggingface(checkpoint).detector.state_dict()
    assert metadata.class_names == ("red", "blue")
    assert metadata.preprocessing.size == SIDE
    assert metadata.preprocessing.mean == (0.5, 0.456, 0.406)
    assert metadata.lineage[0] == f"Hugging Face: {checkpoint}"
    for name, tensor in detector.state_dict().items():
        if not name.startswith("class_head"):
            torch.testing.assert_close(tensor, source[name], rtol=0, atol=1e-6)
    written = yaml.safe_load((result.folder / "config.yaml").read_text())
    assert written["detector"]["dim"] == 32
    assert written["images"]["size"] == SIDE


def test_pretraining_goes_on_from_a_checkpoint_and_finetuning_from_that(
    data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    settings = pretrain_settings(
        data, tmp_path / "pretrained", steps=1, init=str(checkpoint), detector={"num_queries": 10},
        optimizer={"lr": 1e-9, "weight_decay": 0},
    )  # fmt: skip
    result = pretrain(settings)
    detector, metadata = load_model(result.folder)
    source = import_huggingface(checkpoint).detector
    assert metadata.preprocessing.mean == (0.5, 0.456, 0.406)
    assert metadata.lineage[0] == f"Hugging Face: {checkpoint}"
    torch.testing.assert_close(detector.encoder.state_dict(), source.encoder.state_dict(), rtol=0, atol=1e-6)
    tuned = finetune(finetune_settings(data, tmp_path / "tuned", steps=1, init=str(result.folder), detector={}))
    assert load_model(tuned.folder)[1].lineage[:1] == metadata.lineage[:1]


def test_a_run_of_an_older_version_is_resumed_although_settings_were_added(data: Path, tmp_path: Path) -> None:
    from siamdetr.training.checkpoints.checkpoint_file import STATE, read_checkpoint
    from siamdetr.training.checkpoints.run_state import run_state
    from siamdetr.training.run_folder import RunFolder, check_same_run

    settings = finetune_settings(data, tmp_path / "run", steps=2)
    finetune(settings)
    content = read_checkpoint(tmp_path / "run" / "last.ckpt")
    resolved = type(settings).model_validate(content[STATE]["settings"])
    del content[STATE]["settings"]["losses"]
    run = RunFolder(tmp_path, tmp_path / "last.ckpt", content, run_state(content, tmp_path))
    assert check_same_run(run, resolved, {}) == ()
