"""The abilities of every detector of the registry.

The tables in docs/detectors.md are written from it, and from the tests that passed.

pytest tests/models/test_detectors.py --write-docs
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.golden_fill import fill
from helpers.detectors import own_settings
from helpers.exported import export_variant
from helpers.golden import batch_of, near, read
from helpers.paths import ROOT
from helpers.training_data import DETECTOR, finetune_settings, pretrain_settings, write_data
from PIL import Image

from siamdetr.api import SiamDETR
from siamdetr.data.synthetic.shapes import write_synthetic
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.model_file import load_model
from siamdetr.models.detector import Detector
from siamdetr.models.heads import each_head
from siamdetr.official.convert import convert_file
from siamdetr.presets import preset_values
from siamdetr.settings.detector import DetectorSettings
from siamdetr.settings.registry import DETECTORS
from siamdetr.training.finetune import finetune
from siamdetr.training.pretrain import pretrain

DOCUMENT = ROOT / "docs" / "detectors.md"
START, END = "<!-- from here: tests/models/test_detectors.py --write-docs -->", "<!-- to here -->"
NOTHING = "–"

REGISTRY_START = "<!-- the registry: tests/models/test_detectors.py --write-docs -->"
REGISTRY_END = "<!-- end of the registry -->"

# The golden forward pass of each variant's official code.
GOLDEN_CASES = {
    "vanilla": "A_detr",
    "conditional": "A_conditional",
    "deformable": "A_deformable_ms",
    "dab": "A_dab",
    "dn": "A_dn",
    "dab_deformable": "A_dab_deformable",
    "dn_deformable": "A_dn_deformable",
    "dino": "A_dino",
    "rtdetr": "A_rtdetrv2",
}
NARROW = {"dim": 64, "heads": 4, "encoder_layers": 1, "decoder_layers": 2, "feedforward": 128, "num_queries": 30}
Shown = dict[tuple[str, str], str]  # (variant, column): what the table says


@pytest.fixture(scope="module")
def shown() -> Shown:
    """Results of the tests of this run."""
    return {}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("shapes"), num_unlabelled=1, num_train=48, num_val=4, size=96)


def tiny(variant: str) -> Detector:
    """A small detector whose outputs depend on the image."""
    torch.manual_seed(3)
    values = DETECTOR | own_settings(variant) | {"num_classes": 3, "decoder_layers": 1}
    detector = Detector(DetectorSettings.model_validate(values)).eval()
    for head in [*each_head(detector.box_head), *each_head(detector.class_head)]:
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return detector


def model_of(variant: str) -> SiamDETR:
    return SiamDETR.from_parts(
        tiny(variant), class_names=("a", "b", "c"), preprocessing=PreprocessingSpec.from_size(96)
    )


@pytest.mark.slow
@pytest.mark.parametrize("variant", DETECTORS)
def test_trains_from_its_small_preset_and_improves(variant: str, shapes: Path, tmp_path: Path, shown: Shown) -> None:
    """The preset, but narrow, on 96 pixels, 80 steps on features of the frozen backbone."""
    preset = preset_values(DETECTORS[variant].small_preset, stage="finetune")
    detector = preset["detector"] | own_settings(variant) | NARROW
    own = {name: preset[name] for name in ("losses", "denoising") if name in preset}
    images = {"size": 96, "max_size": 96, "augment": "flip"}
    settings = finetune_settings(
        shapes, tmp_path / "run", detector=detector, images=images, steps=80, batch_size=4, freeze="backbone",
        optimizer={"lr": 1e-3}, schedule=preset["schedule"], backbone_weights="imagenet", checkpoint_every=80,
        **own,
    )  # fmt: skip
    rows = list(csv.DictReader((finetune(settings).folder / "metrics.csv").read_text().splitlines()))
    for name, share in (("loss", 0.85), ("loss_bbox", 0.9)):
        values = [float(row[name]) for row in rows if row.get(name)]
        assert len(values) == 80
        assert np.mean(values[-10:]) < share * np.mean(values[:10]), name
    shown[variant, "train"] = "yes"


@pytest.mark.parametrize("variant", DETECTORS)
def test_a_pretrained_run_is_finetuned(variant: str, tmp_path: Path, shown: Shown) -> None:
    data = write_data(tmp_path / "data", empty=(1, 2))
    shape = {**DETECTOR, **own_settings(variant)}
    first = pretrain(pretrain_settings(data, tmp_path / "pretrained", detector=shape, steps=2)).folder
    one_class, _ = load_model(first / "last.safetensors")
    assert one_class.settings.num_classes == 1
    run = finetune(finetune_settings(data, tmp_path / "tuned", detector=shape, init=str(first), steps=3)).folder
    tuned, metadata = load_model(run / "last.safetensors")
    assert tuned.settings.variant == variant
    assert metadata.class_names == ("red", "blue")
    logged = (run / "metrics.csv").read_text().splitlines()[0]
    assert ("loss_bbox_dn" in logged) == tuned.denoises
    shown[variant, "pretrain"] = "yes"


@pytest.mark.parametrize("variant", DETECTORS)
@torch.no_grad()
def test_an_official_file_becomes_a_model_file_that_answers_alike(variant: str, tmp_path: Path, shown: Shown) -> None:
    family = DETECTORS[variant].family
    if family is None:
        pytest.skip(f"there are no official checkpoints of '{variant}'")
    meta, stored = read(GOLDEN_CASES[variant])
    weights = fill(dict(meta["state_dict"]), meta["aliases"])
    torch.save({"model": weights, "args": argparse.Namespace(**meta["spec"]["model"])}, tmp_path / "official.pth")
    convert_file(tmp_path / "official.pth", family=family, output=tmp_path / "ours.safetensors")
    detector, _ = load_model(tmp_path / "ours.safetensors")
    assert detector.settings.variant == variant
    outputs = detector.eval()(*batch_of(meta))
    near(outputs.logits[-1], stored["pred_logits"], 1e-3)
    near(outputs.boxes[-1], stored["pred_boxes"], 2e-4)
    shown[variant, "import"] = f"`{family}`"


@pytest.mark.parametrize("variant", DETECTORS)
def test_exports_with_free_sizes_and_answers_alike(variant: str, tmp_path: Path, shown: Shown) -> None:
    report = export_variant(variant, tmp_path).gate
    assert report is not None
    assert report.passed
    assert {check.batch_size for check in report.checks} == {1, 2, 5}
    assert any(check.height % 32 and check.width % 32 for check in report.checks)
    assert any(check.box_error > 0 for check in report.checks)  # the boxes are not all alike
    shown[variant, "export"] = "yes"


@pytest.mark.parametrize("variant", DETECTORS)
def test_attention_of_every_layer_is_one_map_a_head_and_query(variant: str, shown: Shown) -> None:
    maps = model_of(variant).attention(Image.new("RGB", (96, 64), "orange"))
    grid = maps.shape[-2:]
    assert maps.shape[:3] == (1, DETECTOR["heads"], DETECTOR["num_queries"])
    assert grid[0] / grid[1] == pytest.approx(64 / 96, rel=0.2)
    sums = maps.sum((-2, -1))
    if DETECTORS[variant].multi_scale:  # points may lie outside the image
        assert sums.max() <= 1 + 1e-5
        assert sums.mean() > 0.2
    else:
        assert np.allclose(sums, 1, atol=1e-5)
    shown[variant, "attention"] = "yes"


COLUMNS: dict[str, Callable[..., None]] = {
    "train": test_trains_from_its_small_preset_and_improves,
    "pretrain": test_a_pretrained_run_is_finetuned,
    "import": test_an_official_file_becomes_a_model_file_that_answers_alike,
    "export": test_exports_with_free_sizes_and_answers_alike,
    "attention": test_attention_of_every_layer_is_one_map_a_head_and_query,
}


def table(cells: Shown) -> str:
    lines = [f"| variant | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    lines += [
        f"| `{variant}` | {' | '.join(cells.get((variant, column), NOTHING) for column in COLUMNS)} |"
        for variant in DETECTORS
    ]
    return "\n".join(lines) + "\n"


def registry_table() -> str:
    """The detectors there are, as the registry describes them."""
    lines = ["| variant | detector | idea | its own settings | file |", "|---|---|---|---|---|"]
    for variant, entry in DETECTORS.items():
        paper = f" ([{entry.paper}](https://arxiv.org/abs/{entry.paper}))" if entry.paper else ""
        options = ", ".join(f"`{name}`" for name in sorted(entry.options)) or NOTHING
        file = entry.builder.partition(":")[0].rpartition(".")[2]
        lines.append(f"| `{variant}` | {entry.name}{paper} | {entry.idea} | {options} | `{file}.py` |")
    return "\n".join(lines) + "\n"


def test_the_document_lists_the_registry(request: pytest.FixtureRequest) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = text.split(REGISTRY_START)[0], text.split(REGISTRY_END)[1]
    if request.config.getoption("--write-docs"):
        DOCUMENT.write_text(f"{before}{REGISTRY_START}\n{registry_table()}{REGISTRY_END}{after}", encoding="utf-8")
        return
    there = text.split(REGISTRY_START)[1].split(REGISTRY_END)[0].strip()
    assert there == registry_table().strip(), "stale: run pytest tests/models/test_detectors.py --write-docs"


def written(text: str) -> Shown:
    """The cells of the table in the document."""
    lines = text.split(START)[1].split(END)[0].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {
        (row[0].strip("`"), column): cell for row in rows[2:] for column, cell in zip(rows[0][1:], row[1:], strict=True)
    }


def collected(items: list[pytest.Item]) -> Iterator[tuple[str, str]]:
    """The cells whose tests are part of this run."""
    names = {test.__name__: column for column, test in COLUMNS.items()}
    for item in items:
        if isinstance(item, pytest.Function) and item.originalname in names:
            yield item.callspec.params["variant"], names[item.originalname]


def test_the_table_of_detectors_says_what_the_tests_showed(request: pytest.FixtureRequest, shown: Shown) -> None:
    """Compares the cells whose tests ran: all of them where the whole file runs."""
    ran, text = set(collected(request.session.items)), DOCUMENT.read_text(encoding="utf-8")
    if request.config.getoption("--write-docs"):
        assert len(ran) == len(DETECTORS) * len(COLUMNS), (
            "the table is written from the whole file: leave out -k and -m"
        )
        before, after = text.split(START)[0], text.split(END)[1]
        DOCUMENT.write_text(f"{before}{START}\n{table(shown)}{END}{after}", encoding="utf-8")
        return
    there = written(text)
    assert {variant for variant, _ in there} == set(DETECTORS)
    differing = {
        cell: (there.get(cell), shown.get(cell, NOTHING)) for cell in ran if there.get(cell) != shown.get(cell, NOTHING)
    }
    assert differing == {}, "docs/detectors.md is stale: run pytest tests/models/test_detectors.py --write-docs"
