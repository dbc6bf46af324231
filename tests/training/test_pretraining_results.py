"""Results of a pretraining run: proposal figures in its report, and all weights for finetuning."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from helpers.training_data import DETECTOR, pretrain_settings, write_data

from siamdetr.files import PROPOSALS_FILE
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.model_file import ModelMetadata, load_model, save_model
from siamdetr.models.detector import Detector
from siamdetr.pretext.common import pretext_settings
from siamdetr.settings.detector import DetectorSettings
from siamdetr.settings.registry import DETECTORS
from siamdetr.training.initial_weights import load_start
from siamdetr.training.pretrain import pretrain
from siamdetr.training.pretrain_module import class_agnostic


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def test_the_report_tells_what_the_proposals_cover(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="siamdetr"):
        pretrain(pretrain_settings(data, tmp_path / "run", steps=1, method="detreg"))
    found = re.search(r"average recall (\S+) of the first 10, .* \(IoU \.5:\.95, on 8 labelled images\)", caplog.text)
    assert found
    figures = dict(json.loads((tmp_path / "run" / PROPOSALS_FILE).read_text())["rows"])
    assert figures["images with proposals"] == 8
    assert figures["images without stored proposals, which got EdgeBoxes whenever they were read"] == 0
    ten = figures["average recall of the first 10, IoU .5:.95, on 8 labelled images"]
    assert f"{ten:.3f}" == found[1]
    report = (tmp_path / "run" / "report.html").read_text()
    assert f"average recall of the first 10, IoU .5:.95, on 8 labelled images</td><td>{ten:.3f}" in report
    assert "edgeboxes gradient lab" in report


def test_without_labels_or_stored_proposals_there_is_no_recall(data: Path, tmp_path: Path) -> None:
    pretrain(pretrain_settings(data / "train", tmp_path / "bare", steps=1, method="detreg"))
    assert "average recall" not in (tmp_path / "bare" / PROPOSALS_FILE).read_text()
    pretrain(pretrain_settings(data, tmp_path / "random", steps=1, method="updetr"))
    assert not (tmp_path / "random" / PROPOSALS_FILE).exists()


def test_pretraining_in_half_precision_keeps_and_saves_whole_weights(data: Path, tmp_path: Path) -> None:
    result = pretrain(pretrain_settings(data, tmp_path / "run", steps=1, precision="bf16"))
    state = load_model(result.model)[0].state_dict()
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}
    trained = state["decoder.layers.0.self_attention.query_content.weight"]
    assert not torch.equal(trained, trained.bfloat16().float())


@pytest.mark.parametrize("variant", DETECTORS)
def test_of_a_pretrained_detector_all_is_taken_over_but_what_the_classes_decide(variant: str, tmp_path: Path) -> None:
    deformable = {"levels": 3, "backbone": "resnet18"} if DETECTORS[variant].multi_scale else {}
    refine = {"refine": True} if variant == "deformable" else {}
    shape = DetectorSettings.model_validate(DETECTOR | {"variant": variant} | deformable | refine)
    torch.manual_seed(1)
    pretrained = class_agnostic(Detector(pretext_settings(shape)))
    spec = PreprocessingSpec.from_size(64)
    save_model(tmp_path / "p.safetensors", pretrained, ModelMetadata(class_names=("object",), preprocessing=spec))
    torch.manual_seed(2)
    detector = Detector(shape.model_copy(update={"num_classes": 2}))
    begun = load_start(detector, ("red", "blue"), tmp_path / "p.safetensors")
    labels = ("learned_queries.labels",) if DETECTORS[variant].denoises else ()
    assert begun.fresh == ("class_head", *labels)
    before, after = pretrained.state_dict(), detector.state_dict()
    assert before.keys() == after.keys()
    differing = {name for name in after if not torch.equal(before[name], after[name])}
    assert differing == {name for name in after if name.startswith(("class_head", *labels))}
