"""Run folders, checkpoints and bundles that siamdetr 0.1.0 wrote are still read."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import yaml
from helpers.paths import TESTS

from siamdetr.api import load
from siamdetr.model_file import load_model
from siamdetr.pretext.run_settings import PretrainSettings
from siamdetr.proposals.store import ProposalStore
from siamdetr.settings.training import FinetuneSettings
from siamdetr.training.checkpoints.checkpoint_file import read_checkpoint
from siamdetr.training.describe_file import describe
from siamdetr.training.finetune import finetune
from siamdetr.training.run_folder import validation_part


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The artefacts; the working folder is theirs, since their data was named relative to it."""
    with tarfile.open(TESTS / "artefacts" / "written-by-0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_run_folders_are_described_and_give_their_models(old: Path) -> None:
    assert describe(old / "finetuned")["kind"] == "run folder of finetuning"
    assert describe(old / "pretrained")["kind"] == "run folder of pretraining (siamese)"
    for run in ("finetuned", "pretrained"):
        detector, metadata = load_model(old / run)
        assert detector.settings.backbone == "test_resnet.r160_in1k"
        assert metadata.lineage
    found = load(old / "finetuned").predict(old / "data" / "val" / "1.png", threshold=0.0)
    assert len(found) > 0


def test_settings_are_read(old: Path) -> None:
    finetuned = yaml.safe_load((old / "finetuned" / "config.yaml").read_text())
    assert FinetuneSettings.model_validate(finetuned).steps == 1
    pretrained = yaml.safe_load((old / "pretrained" / "config.yaml").read_text())
    assert PretrainSettings.model_validate(pretrained).method == "siamese"
    part = validation_part(old / "finetuned")
    assert part is not None
    assert len(part) == 1
    assert validation_part(old / "pretrained") is None


def test_a_checkpoint_without_seal_and_fingerprint_resumes(old: Path) -> None:
    content = read_checkpoint(old / "finetuned" / "last.ckpt")
    assert content["step"] == 1
    assert "data" not in content["siamdetr"]
    settings = FinetuneSettings.model_validate(yaml.safe_load((old / "finetuned" / "config.yaml").read_text()))
    longer = settings.model_copy(update={"steps": 2})
    result = finetune(longer, resume="auto", allow_changes=True)
    assert result.steps == 2
    assert load_model(result.folder / "last.safetensors")[1].lineage == (
        "finetune: conditional on data (2 images), 2 steps; from step 1 on: steps 1 → 2",
    )


def test_proposals_and_bundle_are_opened(old: Path) -> None:
    assert len(ProposalStore.open(old / "proposals" / "edgeboxes.arrow")) == 2
    pytest.importorskip("onnxruntime")
    model = load(old / "bundle")
    assert model.info["class_names"] == ("red", "blue") or list(model.info["class_names"]) == ["red", "blue"]
    assert len(model.predict(old / "data" / "val" / "1.png", threshold=0.0)) > 0
