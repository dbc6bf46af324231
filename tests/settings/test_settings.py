"""Settings come from preset, file, flags and --set; later ones override, and typos are explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from siamdetr.errors import SettingsError
from siamdetr.presets import PRESETS
from siamdetr.pretext.run_settings import PretrainSettings
from siamdetr.settings.pretext import DETRegSettings, SiameseSettings, UPDETRSettings
from siamdetr.settings.resolve import differences, resolve
from siamdetr.settings.training import FinetuneSettings, RunSettings

DATA = {"data.paths": ["images"]}
CLASSES: dict[str, type[RunSettings]] = {"pretrain": PretrainSettings, "finetune": FinetuneSettings}


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(name: str, stage: str) -> None:
    if getattr(PRESETS[name], stage) is None:
        with pytest.raises(SettingsError, match=f"preset '{name}' is not for {stage}; for {stage} there are: "):
            resolve(CLASSES[stage], preset=name, flags=DATA)
    else:
        settings = resolve(CLASSES[stage], preset=name, flags=DATA)
        assert settings.data.paths == ("images",)
        assert PRESETS[name].description


def test_paper_weights_are_those_of_the_official_configs() -> None:
    def weights(name: str) -> tuple[float, float]:
        siamese = resolve(PretrainSettings, preset=name, flags=DATA).of(SiameseSettings)
        return siamese.weight_global, siamese.weight_region

    assert weights("siamese-imagenet-vanilla") == (10.0, 3.0)
    assert weights("siamese-imagenet-conditional") == (10.0, 5.0)
    assert weights("siamese-coco-conditional") == (0.3, 3.0)
    assert weights("small") == (1.0, 1.0)


def test_official_differences_of_the_methods_are_in_their_presets() -> None:
    updetr = resolve(PretrainSettings, preset="updetr-imagenet-vanilla", flags=DATA)
    assert (updetr.method, updetr.detector.pre_norm, updetr.steps, updetr.batch_size) == ("updetr", True, 300_000, 256)
    patches = updetr.of(UPDETRSettings)
    assert (patches.proposals, patches.augment, patches.mask_ratio) == ("random", "scale", 0.1)
    detreg = resolve(PretrainSettings, preset="detreg-imagenet-deformable", flags=DATA)
    regions = detreg.of(DETRegSettings)
    assert (detreg.method, detreg.epochs, regions.num_regions) == ("detreg", 5, 30)
    assert (regions.proposals, regions.embedding, regions.classifier) == (
        "selective-search",
        "c3",
        "focal",
    )
    assert resolve(PretrainSettings, preset="updetr-coco-conditional", flags=DATA).steps == 120_000


@pytest.mark.parametrize("method", ["siamese", "updetr", "detreg"])
def test_the_small_preset_puts_the_methods_on_equal_footing(method: str) -> None:
    settings = resolve(PretrainSettings, preset="small", flags=DATA | {"method": method})
    mine, theirs = settings.of_method, settings.of(SiameseSettings)
    assert (mine.proposals, mine.size, mine.crop_size, mine.losses) == ("edgeboxes", 320, 128, theirs.losses)


def test_an_unknown_method_and_a_setting_of_another_method_are_answered() -> None:
    with pytest.raises(SettingsError, match="setting 'method' got 'upd': input should be 'siamese', 'updetr' or 'detr"):
        resolve(PretrainSettings, flags=DATA | {"method": "upd", "steps": 1})
    with pytest.raises(SettingsError, match=r"no such setting 'detreg.view_iou'"):
        resolve(PretrainSettings, flags=DATA, assignments=["detreg.view_iou=.5"])


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("batch_size: 3\nseed: 3\noptimizer: {lr: 0.003, clip: 0.3}\n")
    flags: dict[str, Any] = {**DATA, "seed": 4, "optimizer.clip": 0.4, "grad_accum": None}
    settings = resolve(FinetuneSettings, preset="small", file=file, flags=flags, assignments=["optimizer.clip=5e-1"])
    assert settings.epochs == 50  # the preset
    assert (settings.batch_size, settings.optimizer.lr) == (3, 0.003)  # the file
    assert (settings.seed, settings.grad_accum) == (4, 1)  # the flags; a flag not given changes nothing
    assert settings.optimizer.clip == 0.5  # --set; 5e-1 is a number, whatever YAML 1.1 thinks


@pytest.mark.parametrize(
    ("assignment", "answer"),
    [
        ("optimizer.lrr=1", "no such setting 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        ("weight_decay=1", "no such setting 'weight_decay'; did you mean 'optimizer.weight_decay'?"),
        ("optimizer.lr=-1", "setting 'optimizer.lr' got -1: input should be greater than 0"),
        ("precision=fp8", "setting 'precision' got 'fp8': input should be 'fp32', 'bf16', 'fp16' or 'auto'"),
        ("optimizer.lr", "--set got 'optimizer.lr', expected KEY=VALUE, such as optimizer.clip=0.1"),
    ],
)
def test_a_wrong_assignment_is_answered(assignment: str, answer: str) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve(FinetuneSettings, preset="small", flags=DATA, assignments=[assignment])
    assert answer in str(caught.value)


def test_a_wrong_file_is_answered(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    with pytest.raises(SettingsError, match="no such settings file"):
        resolve(FinetuneSettings, file=file, flags=DATA)
    file.write_text("optimizer: {lrr: 1}")
    with pytest.raises(
        SettingsError, match=r"mine.yaml: no such setting 'optimizer.lrr'; did you mean 'optimizer.lr'\?"
    ):
        resolve(FinetuneSettings, file=file, flags=DATA)
    file.write_text("a: [")
    with pytest.raises(SettingsError, match="not a YAML file"):
        resolve(FinetuneSettings, file=file, flags=DATA)
    file.write_text("- 1")
    with pytest.raises(SettingsError, match="got a list, expected settings"):
        resolve(FinetuneSettings, file=file, flags=DATA)


def test_an_unknown_preset_is_answered() -> None:
    with pytest.raises(SettingsError, match=r"no such preset 'smal'; did you mean 'small'\?"):
        resolve(FinetuneSettings, preset="smal", flags=DATA)


def test_a_run_needs_data_and_a_length() -> None:
    with pytest.raises(SettingsError, match="setting 'data' is missing"):
        resolve(FinetuneSettings, preset="small")
    with pytest.raises(SettingsError, match="give the length of the run: 'epochs' or 'steps'"):
        resolve(FinetuneSettings, flags=DATA)


def test_differences_are_dotted() -> None:
    assert differences({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4, "d": 3}, "e": 5}) == ["b.c", "e"]
