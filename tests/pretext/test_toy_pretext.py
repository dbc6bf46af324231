"""A new pretext is one class and one entry of `PRETEXTS`: a toy of this file goes all the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers.study_data import quiet, settings
from helpers.training_data import SIDE, finetune_settings, pretrain_settings, write_data
from pydantic import Field
from torch import Tensor

from siamdetr.api import SiamDETR
from siamdetr.data.readers.recognise import open_dataset
from siamdetr.errors import SettingsError
from siamdetr.export.gate.images import samples_of
from siamdetr.export.onnx import export_onnx
from siamdetr.model_file import read_metadata
from siamdetr.models.detector import Detector, Outputs
from siamdetr.pretext.batches import RegionBatch
from siamdetr.pretext.common import Pretext, match_monitors
from siamdetr.pretext.datasets import RegionDataset, collate_regions
from siamdetr.pretext.registry import PRETEXTS, PretextEntry
from siamdetr.pretext.run_settings import PretrainSettings
from siamdetr.settings.pretext import DETRegSettings
from siamdetr.settings.resolve import resolve
from siamdetr.study.report import write_study_report
from siamdetr.study.runner import open_grid, run_grid
from siamdetr.system.parallel import TaskRunner
from siamdetr.training.finetune import finetune
from siamdetr.training.pretrain import pretrain


class ToySettings(DETRegSettings):
    """Boxes alone."""

    num_regions: int = Field(4, ge=1)
    proposals: str = "random"  # type: ignore[assignment]


class Toy(Pretext):
    """Detect random boxes with queries that have no region."""

    def __init__(self, detector: Detector, settings: ToySettings) -> None:
        super().__init__(detector, settings.losses)

    def forward(self, batch: RegionBatch) -> dict[str, Tensor]:
        outputs, _ = self.predict(batch)
        losses, matches = self.criterion.losses_and_matches(outputs, batch.targets)
        return losses | match_monitors(outputs, batch.targets, matches)

    def predict(self, batch: RegionBatch) -> tuple[Outputs, None]:
        memory = self.detector.encode_features(self.teacher(batch.images), batch.padding)
        return self.detector.decode(self.detector.queries(len(batch.images)), memory), None


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = PretextEntry("Toy DETR", "#123456", ToySettings, Toy, RegionDataset, collate_regions, "toys in a box")
    monkeypatch.setitem(PRETEXTS, "toy", entry)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def test_its_settings_are_read_and_checked_under_its_key() -> None:
    flags = {"data.paths": ["x"], "steps": 1, "method": "toy", "toy.num_regions": 7}
    found = resolve(PretrainSettings, preset="small", flags=flags)
    assert (found.of(ToySettings).num_regions, found.of_method) == (7, found.of(ToySettings))
    with pytest.raises(SettingsError, match=r"no such setting 'toy.num_region'; did you mean 'toy.num_regions'"):
        resolve(PretrainSettings, flags=flags, assignments=["toy.num_region=3"])
    with pytest.raises(SettingsError, match=r"setting 'toy.num_regions' got -1: input should be greater than"):
        resolve(PretrainSettings, flags=flags, assignments=["toy.num_regions=-1"])


def test_it_trains_reports_starts_a_finetuning_and_is_exported(data: Path, tmp_path: Path) -> None:
    run_settings = pretrain_settings(data, tmp_path / "run", method="toy", toy={"size": SIDE, "crop_size": 32})
    run = pretrain(run_settings)
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["toy"]["num_regions"] == 4
    page = (run.folder / "report.html").read_text()
    assert "Pretraining without labels (Toy DETR)" in page
    assert "What the method is shown: toys in a box" in page
    assert (run.steps, pretrain(run_settings, resume="auto").model) == (4, run.model)

    tuned = finetune(finetune_settings(data, tmp_path / "tuned", init=str(run.folder), detector={}))
    assert read_metadata(tuned.model)[1].lineage[0].startswith("pretext: toy on")
    val = open_dataset(data, split="val")
    result = export_onnx(SiamDETR.load(tuned.model), tmp_path / "bundle", samples=samples_of(val, 2))
    assert (result.folder / "model.onnx").is_file()


def test_a_study_compares_it_with_scratch(data: Path, tmp_path: Path) -> None:
    study = settings(data, methods=["toy"], fractions=[1.0], seeds=[0])
    grid = run_grid(
        open_grid(study, tmp_path / "study"), engine=TaskRunner("here"), device="cpu", progress=quiet, told=quiet
    )
    page = write_study_report(grid).read_text()
    assert not grid.missing
    assert "Toy DETR" in page
    assert "#123456" in (grid.place / "plots" / "ap.svg").read_text()
