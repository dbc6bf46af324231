"""A step and a prediction on a pretended GPU: devices never mix, and a step waits once, to match."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers.fake_cuda import DEVICE, Device, fake_cuda, in_a_child

from siamdetr.images.preprocessing import Prepared, PreprocessingSpec
from siamdetr.inference.pytorch import PyTorchPredictor
from siamdetr.models.detector import Detector
from siamdetr.pretext.batches import RegionBatch, ViewBatch
from siamdetr.pretext.common import pretext_settings
from siamdetr.pretext.registry import PRETEXTS
from siamdetr.pretext.run_settings import PretrainSettings
from siamdetr.settings.detector import DetectorSettings
from siamdetr.settings.registry import DETECTORS
from siamdetr.settings.training import FinetuneSettings
from siamdetr.structures.targets import DetectionBatch, Targets, region_targets
from siamdetr.training.finetune_module import FinetuneModule
from siamdetr.training.pretrain_module import PretrainModule
from siamdetr.training.step_module import StepModule

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

SIDE, CLASSES = 64, 5
TINY: dict[str, Any] = {
    "backbone": "test_resnet", "num_queries": 40, "encoder_layers": 1, "decoder_layers": 2, "dim": 64, "heads": 4,
    "feedforward": 64, "num_classes": CLASSES, "dropout": 0.1,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    **{
        name: {"variant": name} | ({"levels": 4} if "levels" in entry.options else {})
        for name, entry in DETECTORS.items()
    },
    "two-stage": {"variant": "deformable", "levels": 4, "refine": True, "two_stage": True},
}
MATCHING = "copy cuda to cpu: siamdetr/models/criterion/matcher.py"


def settings_of(name: str) -> DetectorSettings:
    entry = DETECTORS[VARIANTS[name]["variant"]]
    return DetectorSettings.model_validate({**TINY, "classifier": entry.classifier, **VARIANTS[name]})


def labelled(counts: tuple[int, ...]) -> DetectionBatch:
    boxes = torch.rand(sum(counts), 4) * 0.3 + 0.3
    return DetectionBatch(
        torch.zeros(len(counts), 3, SIDE, SIDE, dtype=torch.uint8),
        torch.zeros(len(counts), SIDE, SIDE, dtype=torch.bool),
        Targets(boxes, torch.zeros(len(boxes), dtype=torch.long), counts),
        tuple(range(len(counts))),
        torch.full((len(counts), 2), SIDE),
    )


def unlabelled(method: str, regions: int, images: int = 2) -> ViewBatch | RegionBatch:
    if method == "siamese":
        views = 2 * images
        return ViewBatch(
            images=torch.zeros(views, 3, SIDE, SIDE, dtype=torch.uint8),
            padding=torch.zeros(views, SIDE, SIDE, dtype=torch.bool),
            boxes=torch.rand(views, regions, 4) * 0.3 + 0.3,
            sizes=torch.full((views, 2), SIDE),
            crops=torch.zeros(views, regions, 3, 32, 32, dtype=torch.uint8),
        )
    boxes = torch.rand(images * regions, 4) * 0.3 + 0.3
    return RegionBatch(
        torch.zeros(images, 3, SIDE, SIDE, dtype=torch.uint8),
        torch.zeros(images, SIDE, SIDE, dtype=torch.bool),
        region_targets(boxes, [regions] * images),
        torch.zeros(images * regions, 3, 32, 32, dtype=torch.uint8),
    )


def step(module: StepModule, batch: Any, dtype: torch.dtype | None) -> None:
    """One training step on the device."""
    module.train()
    batch = module.transfer_batch_to_device(batch.pin_memory(), torch.device(DEVICE), 0)
    with torch.autocast(DEVICE, dtype or torch.bfloat16, enabled=dtype is not None):
        total = cast("Any", module).training_step(batch, 0)
    assert total.device.type == DEVICE


def check(device: Device, *, waits: list[str]) -> None:
    assert device.mixtures == []
    assert [text.rpartition(":")[0] for text in device.waits] == waits, device.waits
    device.waits.clear()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, None) for name in VARIANTS), ("conditional", torch.bfloat16), ("two-stage", torch.bfloat16)],
    ids=str,
)
def test_a_finetuning_step_waits_for_its_matching_alone(
    name: str, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FinetuneSettings.model_validate({"data": {"paths": ["x"]}, "steps": 10})

    def work() -> None:
        with fake_cuda(monkeypatch) as device:
            module = FinetuneModule(Detector(settings_of(name)), run, PreprocessingSpec(), 10).to(DEVICE)
            some, none = labelled((3, 5)), labelled((0, 0))
            device.waits.clear()
            step(module, some, dtype)
            stages = 2 if settings_of(name).two_stage or DETECTORS[VARIANTS[name]["variant"]].proposes else 1
            check(device, waits=[MATCHING] * stages)
            step(module, none, dtype)
            check(device, waits=[])
            assert (torch.bfloat16 in device.products) == (dtype is torch.bfloat16)

    in_a_child(work)


@pytest.mark.parametrize("method", PRETEXTS)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_pretraining_step_waits_for_its_matching_alone(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # DETReg's targets are a map of stride 8, which of one level only a ResNet gives out.
    shape = settings_of(name).model_copy(update={"backbone": "resnet18"} if method == "detreg" else {})
    run = PretrainSettings.model_validate(
        {"data": {"paths": ["x"]}, "steps": 10, "method": method, "detector": shape.model_dump()}
    )
    regions = getattr(run.of_method, "num_regions", 10)

    def work() -> None:
        with fake_cuda(monkeypatch) as device:
            settings = pretext_settings(run.detector, run.of_method.class_loss)
            module = PretrainModule(Detector(settings), run, PreprocessingSpec(), 10).to(DEVICE)
            batch = unlabelled(method, min(regions, 10))
            step(module, batch, None)  # the first step folds the teacher
            device.waits.clear()
            step(module, batch, None)
            stages = 2 if settings_of(name).two_stage or DETECTORS[VARIANTS[name]["variant"]].proposes else 1
            check(device, waits=[MATCHING] * stages)

    in_a_child(work)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_prediction_waits_once_for_its_boxes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:

    def work() -> None:
        with fake_cuda(monkeypatch) as device:
            detector = Detector(settings_of(name)).eval().to(DEVICE)
            predictor = PyTorchPredictor(detector, tuple(f"c{i}" for i in range(CLASSES)), PreprocessingSpec())
            pixels, sizes = np.zeros((2, 3, SIDE, SIDE), dtype=np.uint8), np.full((2, 2), SIDE)
            for padding in (None, np.zeros((2, SIDE, SIDE), dtype=np.bool_)):
                batch = Prepared(pixels, padding, sizes, sizes)
                with torch.no_grad():
                    predictor.forward(batch)  # folds the backbone
                    device.waits.clear()
                    predictor.score(predictor.forward(batch), batch)
                check(device, waits=["copy cuda to cpu: siamdetr/inference/pytorch.py"])

    in_a_child(work)
