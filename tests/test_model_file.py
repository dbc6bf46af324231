"""Model files: a round trip, errors that name the fault, and no unpickling.

`describe` explains all our files.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.training_data import DETECTOR, finetune_settings, write_data
from safetensors.torch import save_file

from siamdetr.errors import CheckpointError
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.model_file import ModelMetadata, find_model_file, load_model, save_model
from siamdetr.models.detector import Detector
from siamdetr.settings.detector import DetectorSettings
from siamdetr.training.describe_file import describe
from siamdetr.training.finetune import finetune

METADATA = ModelMetadata(
    class_names=("red", "blue"),
    category_ids=(3, 7),
    preprocessing=PreprocessingSpec.from_size(64),
    lineage=("pretext: siamese on here, 3 steps",),
    metrics={"ap": 0.5},
)


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector(DetectorSettings.model_validate({**DETECTOR, "num_classes": 2}))


@pytest.fixture
def file(detector: Detector, tmp_path: Path) -> Path:
    save_model(tmp_path / "model.safetensors", detector, METADATA)
    return tmp_path / "model.safetensors"


def test_a_model_comes_back_whole(detector: Detector, file: Path) -> None:
    loaded, metadata = load_model(file)
    assert metadata == METADATA
    assert loaded.settings == detector.settings
    assert not loaded.training
    for name, value in detector.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_any_flipped_byte_is_noticed(file: Path) -> None:
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [3, 9, header // 2, header - 3, header, header + 1, (header + len(whole)) // 2, len(whole) - 1]
    for place in places:
        spoilt = bytearray(whole)
        spoilt[place] ^= 0x10
        file.write_bytes(spoilt)
        with pytest.raises(CheckpointError, match=r"damaged|not a safetensors file|does not say"):
            load_model(file)


def test_a_truncated_or_foreign_file_is_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="truncated, damaged, or not a safetensors file"):
            load_model(file)
    save_file({"x": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match=r"a safetensors file, but not a model of siamdetr .*`siamdetr convert`"):
        load_model(file)


def test_a_newer_format_or_missing_metadata_is_refused(file: Path) -> None:
    save_file({"x": torch.zeros(2)}, file, {"format": "siamdetr-model", "format_version": "9"})
    with pytest.raises(CheckpointError, match="format version 9, but this siamdetr reads up to 1; update siamdetr"):
        load_model(file)
    save_file({"x": torch.zeros(2)}, file, {"format": "siamdetr-model", "format_version": "1"})
    with pytest.raises(CheckpointError, match="damaged: the metadata lacks detector, model, sha256"):
        load_model(file)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("model.ckpt", "a checkpoint to resume training from; the model lies beside it, give the run folder"),
        ("model.pth", "a PyTorch file, which could run code; `siamdetr convert` reads official ones safely"),
        ("model.onnx", "an exported model; siamdetr.load opens it for prediction"),
        ("model.txt", "not a model of ours"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path: Path, name: str, answer: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / name)
    assert answer in str(caught.value)


def test_a_run_folder_means_its_best_model(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a folder without best\.safetensors or last\.safetensors"):
        find_model_file(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        find_model_file(tmp_path / "nothing")
    for name in ("last.safetensors", "best.safetensors"):
        save_model(tmp_path / name, detector, METADATA)
        assert find_model_file(tmp_path).name == name


def test_saving_refuses_a_wrong_name_or_number_of_classes(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a model file ends in \.safetensors, got '\.pt'; name it so"):
        save_model(tmp_path / "model.pt", detector, METADATA)
    short = METADATA.model_copy(update={"class_names": ("red",)})
    with pytest.raises(ValueError, match="got 1 class names for a detector of 2 classes"):
        save_model(tmp_path / "model.safetensors", detector, short)


def test_info_explains_our_files(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    run = finetune(finetune_settings(data, tmp_path / "run", steps=1)).folder
    folder = describe(run)
    assert folder["kind"] == "run folder of finetuning"
    assert folder["to resume"] is True
    assert folder["so far"]["step"] == 1
    assert folder["best.safetensors"]["class_names"] == ("red", "blue")
    assert describe(run / "last.ckpt")["kind"].startswith(
        "training checkpoint of finetune: resume from it with --resume"
    )
    assert describe(run / "last.safetensors")["backbone"] == DETECTOR["backbone"]
    json.dumps(folder)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        describe(tmp_path / "nothing")
    (tmp_path / "x.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"none of our files; .*`siamdetr convert` reads official checkpoints"):
        describe(tmp_path / "x.pth")
