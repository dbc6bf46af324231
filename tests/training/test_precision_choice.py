"""`precision: auto`: the faster precision whose values stay finite, chosen once, not in the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_models import TINY
from torch import Tensor

from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.models.detector import Detector
from siamdetr.settings.base import to_json
from siamdetr.settings.detector import DetectorSettings
from siamdetr.settings.training import FinetuneSettings
from siamdetr.structures.targets import DetectionBatch, Targets
from siamdetr.training.checkpoints.run_state import RunState
from siamdetr.training.finetune_module import FinetuneModule
from siamdetr.training.precision import choose_precision, recorded_precision, training_arithmetic
from siamdetr.training.run_folder import RunFolder

CPU = torch.device("cpu")
AUTO = FinetuneSettings.model_validate({"data": {"paths": ["x"]}, "steps": 3, "precision": "auto"})


@pytest.fixture(scope="module")
def module() -> FinetuneModule:
    shape = DetectorSettings.model_validate({**TINY, "variant": "conditional", "num_classes": 2, "num_queries": 8})
    return FinetuneModule(Detector(shape), AUTO, PreprocessingSpec(), 3)


@pytest.fixture(scope="module")
def batch() -> DetectionBatch:
    return DetectionBatch(
        torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8),
        torch.zeros(2, 64, 64, dtype=torch.bool),
        Targets(torch.full((2, 4), 0.4), torch.zeros(2, dtype=torch.long), (1, 1)),
        (0, 1),
        torch.full((2, 2), 64),
    )


def test_trial_steps_leave_nothing_behind(module: FinetuneModule, batch: DetectionBatch) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert choose_precision(module, batch, AUTO, CPU, processes=1) in ("fp32", "bf16")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not module.records
    assert module.step == 0


def test_a_precision_that_is_not_finite_is_out(
    module: FinetuneModule, batch: DetectionBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = module.training_step

    def half_is_nothing(batch: Any, number: int) -> Tensor:
        total = step(batch, number)
        return total * float("nan") if torch.is_autocast_enabled("cpu") else total

    monkeypatch.setattr(module, "training_step", half_is_nothing)
    assert choose_precision(module, batch, AUTO, CPU, processes=1) == "fp32"


def test_several_processes_agree_without_timing(module: FinetuneModule) -> None:
    assert choose_precision(module, None, AUTO, CPU, processes=2) == "fp32"
    fixed = AUTO.model_copy(update={"precision": "bf16"})
    assert choose_precision(module, None, fixed, CPU, processes=1) == "bf16"


def test_a_resumed_run_keeps_what_was_decided(tmp_path: Path) -> None:
    decided = to_json(AUTO.model_copy(update={"precision": "bf16"}))
    state = RunState(stage="finetune", settings=decided, step=1, world_size=1, torch=torch.__version__)
    resumed = RunFolder(tmp_path, tmp_path / "last.ckpt", {}, state)
    assert recorded_precision(AUTO, resumed).precision == "bf16"
    assert recorded_precision(AUTO, RunFolder(tmp_path)).precision == "auto"
    fixed = AUTO.model_copy(update={"precision": "fp32"})
    assert recorded_precision(fixed, resumed).precision == "fp32"


def test_a_training_leaves_the_arithmetic_as_it_was() -> None:
    """A program that trains and then goes on computes as before: subnormals, and products on a GPU."""
    least, flags = torch.full((), 1e-40), torch.backends.cuda.matmul.allow_tf32
    assert float(least * 1) > 0
    with training_arithmetic("all"):
        assert float(least * 1) == 0
        assert torch.backends.cuda.matmul.allow_tf32
    assert float(least * 1) > 0
    assert torch.backends.cuda.matmul.allow_tf32 == flags
