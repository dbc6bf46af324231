"""The command line: help, messages for mistakes, and every verb on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command import run_command
from PIL import Image
from typer.testing import CliRunner

from siamdetr.api import SiamDETR
from siamdetr.cli.__main__ import COMMANDS, app
from siamdetr.data.synthetic.shapes import write_synthetic
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.models.detector import Detector
from siamdetr.settings.detector import DetectorSettings

runner = CliRunner()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "data"
    write_synthetic(folder, seed=0, num_unlabelled=4, num_train=4, num_val=3, size=64)
    return folder


@pytest.fixture(scope="module")
def model(data: Path) -> Path:
    names = [entry["name"] for entry in json.loads((data / "annotations/instances_val.json").read_text())["categories"]]
    settings = DetectorSettings(
        backbone="resnet18", num_classes=len(names), num_queries=8, dim=32, heads=2, encoder_layers=1, decoder_layers=1,
        feedforward=32,
    )  # fmt: skip
    path = data.parent / "model.safetensors"
    spec = PreprocessingSpec.from_size(64)
    SiamDETR.from_parts(Detector(settings).eval(), class_names=names, preprocessing=spec).save(path)
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    result = runner.invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_convert_names_every_family() -> None:
    from siamdetr.official.convert import IMPORTERS

    said = "".join(runner.invoke(app, ["convert", "--help"]).output.split())  # lines break at hyphens
    assert [family for family in IMPORTERS if family not in said] == []


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; sys.argv = ['siamdetr', '--help']\n"
        "from siamdetr.cli.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules, 'torch was loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_mistyped_setting_is_answered_with_the_nearest(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = run_command(
        "finetune", "--data", data, "--steps", 1, "--set", "optimizer.lrr=1", capsys=capsys, monkeypatch=monkeypatch
    )
    assert code == 1
    assert "no such setting 'optimizer.lrr'; did you mean 'optimizer.lr'?" in text


def test_a_wrong_image_size_says_what_is_expected() -> None:
    result = runner.invoke(app, ["train", "--data", "x", "--imgsz", "big"])
    assert result.exit_code == 2
    assert "HEIGHT,WIDTH" in result.output


def test_a_model_that_is_not_there_is_one_line(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = run_command("val", "nowhere", "--data", data, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 1
    assert text == "error nowhere: no such file or folder"


def test_doctor_finds_a_broken_image_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "good.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"")
    report = tmp_path / "report.json"
    code, text = run_command("doctor", tmp_path, "--json", report, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 1
    assert "bad.jpg" in text
    assert json.loads(report.read_text())["counts"]["error"] == 1


def test_val_scores_a_model_and_its_results_file_alike(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results.json"
    code, first = run_command(
        "val", model, "--data", data, "--split", "val", "--json", results, "--workers", 0,
        capsys=capsys, monkeypatch=monkeypatch,
    )  # fmt: skip
    assert code == 0, first
    code, second = run_command("val", results, "--data", data, "--split", "val", capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0, second
    assert first[first.index("AP50") :] == second[second.index("AP50") :]


def test_predict_writes_pictures_and_boxes(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = run_command(
        "predict", model, data / "val", "--threshold", 0, "-o", tmp_path / "out", capsys=capsys, monkeypatch=monkeypatch
    )
    assert code == 0, text
    rows = json.loads((tmp_path / "out/predictions.json").read_text())
    assert len(rows) == 3
    assert {"box", "score", "label", "name"} == set(rows[0]["detections"][0])
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 3


def test_info_explains_a_model(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = run_command("info", model, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0, text
    assert "conditional" in text
    assert "resnet18" in text


def test_the_quickstart_writes_over_nothing(tmp_path: Path) -> None:
    from siamdetr.cli.quickstart.command import free_folder

    assert free_folder(tmp_path / "quickstart") == tmp_path / "quickstart"
    (tmp_path / "quickstart").mkdir()
    assert free_folder(tmp_path / "quickstart") == tmp_path / "quickstart-2"


def test_proposals_are_computed_scored_and_trained_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "proposals.arrow"
    code, text = run_command(
        "proposals", data, "--split", "val", "-o", file, "--score", "--method", "random", "--workers", 1,
        capsys=capsys, monkeypatch=monkeypatch,
    )  # fmt: skip
    assert code == 0, text
    assert "3 images" in text
    assert "0 images found boxes only after sharpening, 0 have the centred box" in text
    assert "average recall, IoU .5:.95" in text
    code, text = run_command("info", file, capsys=capsys, monkeypatch=monkeypatch)
    assert "random draws=100 kept=100" in text
    before = file.read_bytes()
    code, text = run_command("proposals", data, "--split", "val", "-o", file, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 1
    assert "has proposals of 3 images, made otherwise (random draws=100 kept=100; asked for: edgeboxes" in text
    assert "give another file with -o, or delete it" in text
    assert file.read_bytes() == before
    code, text = run_command(
        "train", "--data", data / "unlabelled", "--proposals", file, "--steps", 1, "-o", tmp_path / "run",
        capsys=capsys, monkeypatch=monkeypatch,
    )  # fmt: skip
    assert code == 1
    assert "has proposals of 3 images, and none of the 4 images" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the file to write with -o, or --score"),
        (["--score", "--method", "edgeboxs"], "expected one of: edgeboxes, selective-search, merged, random"),
        (["--score", "--method", "objectness-file"], "--boxes FILE and --method objectness-file go together"),
        (["--score", "--method", "objectness-file", "--boxes", "none.json"], "--boxes none.json: no such file"),
    ],
)
def test_proposals_that_cannot_be_made_say_why(data: Path, arguments: list[str], message: str) -> None:
    result = runner.invoke(app, ["proposals", str(data), *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
