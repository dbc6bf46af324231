"""Setup of a pretraining run: proposals of the right kind, SwAV's projection, and their absence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from helpers.training_data import write_data
from torch import nn

from siamdetr.data.readers.recognise import open_dataset
from siamdetr.errors import SettingsError, WeightFileError
from siamdetr.models.detector import Detector
from siamdetr.pretext.common import pretext_settings
from siamdetr.pretext.detreg import DETReg, load_projection
from siamdetr.pretext.run_settings import PretrainSettings
from siamdetr.proposals.compute import compute_proposals
from siamdetr.settings.detector import DetectorSettings
from siamdetr.settings.pretext import DETRegSettings
from siamdetr.training.pretrain_module import class_agnostic
from siamdetr.training.pretrain_setup import stored_proposals

SHAPE = {"backbone": "resnet18", "dim": 32, "heads": 4, "encoder_layers": 0, "decoder_layers": 1, "num_queries": 8}


def settings(**changes: Any) -> PretrainSettings:
    return PretrainSettings.model_validate({"data": {"paths": ["here"]}, "steps": 1, "method": "detreg"} | changes)


def projecting() -> DETReg:
    shape = pretext_settings(DetectorSettings.model_validate(SHAPE))
    return DETReg(Detector(shape), DETRegSettings(num_regions=4, embedding="projection"))


def swav(path: Path, channels: int = 512) -> Path:
    head = nn.Sequential(nn.Linear(channels, channels), nn.BatchNorm1d(channels), nn.ReLU(), nn.Linear(channels, 128))
    state = {f"module.projection_head.{name}": value for name, value in head.state_dict().items()}
    torch.save(state | {"module.prototypes.weight": torch.zeros(3, 128)}, path)
    return path


def test_boxes_are_those_that_were_given_or_of_the_method_s_own_kind(tmp_path: Path) -> None:
    index = open_dataset(write_data(tmp_path / "data", train=2), split="train")
    wanted = {"detreg": {"proposals": "selective-search"}}
    run = tmp_path / "runs" / "detreg"
    computed = stored_proposals(settings(**wanted), run, index, lambda done, total: None)
    assert computed is not None
    assert computed.recipe.startswith("selective-search fast side=128")
    assert computed.paths == (tmp_path / "runs" / "proposals" / "selective-search.arrow",)
    compute_proposals(index, tmp_path / "boxes.arrow")
    given = settings(**wanted, data={"paths": ["here"], "proposals": [str(tmp_path / "boxes.arrow")]})
    store = stored_proposals(given, run, index, lambda done, total: None)
    assert store is not None
    assert store.recipe.startswith("edgeboxes")
    assert stored_proposals(settings(method="updetr"), run, index, lambda done, total: None) is None


def test_the_projection_is_swavs_and_stays_as_it_is(tmp_path: Path) -> None:
    model = projecting()
    model.load_weights(str(swav(tmp_path / "swav.pth")))
    assert model.projection is not None
    stored = torch.load(tmp_path / "swav.pth", weights_only=True)
    assert torch.equal(model.projection[3].weight, stored["module.projection_head.3.weight"])
    assert not model.train().projection.training  # type: ignore[union-attr]
    assert not any(parameter.requires_grad for parameter in model.projection.parameters())


def test_a_projection_without_swavs_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match="projection needs SwAV's own file as backbone_weights, got 'imagenet'; give"
    ):
        projecting().load_weights("imagenet")
    with pytest.raises(WeightFileError, match=r"wide\.pth: expected SwAV's projection head .* for 512 channels, got"):
        load_projection(projecting(), swav(tmp_path / "wide.pth", channels=64))


@pytest.mark.parametrize(("classifier", "rows"), [("softmax", [1, 2]), ("focal", [1])])
@torch.no_grad()
def test_a_pretrained_detector_answers_object_as_its_only_class(
    classifier: Literal["softmax", "focal"], rows: list[int]
) -> None:
    shape = DetectorSettings.model_validate(SHAPE | {"variant": "deformable", "levels": 3})
    detector = Detector(pretext_settings(shape, classifier)).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    alone = class_agnostic(detector)
    assert (alone.settings.num_classes, alone.settings.classifier) == (1, classifier)
    torch.testing.assert_close(alone(images).logits, detector(images).logits[..., rows])
