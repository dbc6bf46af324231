"""`siamdetr export` and the use of its bundle on the command line.

The trace is taken from the other tests.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from helpers.command import run_command
from helpers.exported import model_of, traced

from siamdetr.api import SiamDETR
from siamdetr.cli.export import numbers
from siamdetr.data.synthetic.shapes import write_synthetic
from siamdetr.export import onnx as exporter
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.training.run_folder import validation_part

CLASSES = ("disc", "star", "ring")
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(exporter, "trace", lambda module, folder: traced("vanilla"))
    monkeypatch.setenv("COLUMNS", "300")

    return functools.partial(run_command, capsys=capsys, monkeypatch=monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export-cli") / "data"
    write_synthetic(folder, num_unlabelled=1, num_train=1, num_val=3, size=64, classes=CLASSES)
    return folder


@pytest.fixture(scope="module")
def model(data: Path) -> Path:
    """A model file in a folder like a finetuning run's."""
    path = data.parent / "run" / "best.safetensors"
    spec = PreprocessingSpec.from_size(64)
    SiamDETR.from_parts(model_of("vanilla").detector, class_names=CLASSES, preprocessing=spec).save(path)
    settings = f"steps: 1\ndata:\n  paths: [{json.dumps(str(data))}]\n"
    (path.parent / "config.yaml").write_text(settings)
    return path.parent


def test_a_bundle_is_made_predicts_and_is_scored(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    code, text = run("export", model, "-o", bundle, "--precision", "fp16")
    assert code == 0, text
    assert "PASS: scores and boxes equal PyTorch's to" in text
    assert f"on 3 images of {data}" in text  # the run's validation part, without --data
    assert "on 3 images (95 % interval of the loss" in text  # AP of both
    assert json.loads((bundle / "manifest.json").read_text())["gate"]["ap"]["images"] == 3
    picture = next((data / "val").glob("*.*"))
    code, text = run("predict", bundle, picture, "-o", tmp_path / "out", "--threshold", 0.2)
    assert code == 0, text
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 1
    code, text = run("val", bundle, "--data", data, "--workers", 0)
    assert code == 0, text
    assert "AR@100" in text
    code, text = run("val", bundle, "--data", data, "--backend", "pytorch")
    assert code == 1
    assert "backend 'pytorch' does not run such a file" in text


def test_an_engine_is_built_into_the_bundle_and_rebuilt_from_it(
    run: Run, model: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundle, other = tmp_path / "bundle", tmp_path / "other"
    trt = ("--trt", "--trt-module", "tensorrt_rtx", "--batch", "1,2,3", "--heights", "65,96,128")
    code, text = run("export", model, "-o", bundle, "--no-gate", *trt)
    assert code == 0, text
    assert "Not compared with PyTorch (--no-gate)." in text
    assert "Multiplying layers:" in text
    assert "(read from the network)" in text
    (profile,) = json.loads((bundle / "manifest.json").read_text())["engine"]["profiles"]
    assert profile["batch"] == [1, 2, 3]
    assert profile["height"] == [65, 96, 128]
    code, text = run("export", bundle, "-o", other, *trt)
    assert code == 0, text
    assert (other / "model.engine").is_file()
    code, text = run("predict", bundle, data / "val", "--backend", "tensorrt", "-o", tmp_path / "out")
    assert code == 1
    assert "TensorRT needs an NVIDIA GPU" in text


def test_a_file_that_fails_is_an_error_and_stays_rejected(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "trace", lambda module, folder: traced("conditional"))
    code, text = run("export", model, "-o", tmp_path / "bundle")
    assert code == 1
    assert "model.onnx.rejected: differs from PyTorch" in text
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {
        "model.onnx.rejected",
        "model.onnx.rejected.json",
    }


def test_flags_that_make_no_sense_are_refused(run: Run, model: Path, tmp_path: Path) -> None:
    for flags, text in [
        (("--batch", "0,1,2"), "batch: got 0,1,2, expected three numbers"),
        (("--batch", "4"), "--batch got '4', expected MIN,OPT,MAX such as 1,2,8"),
        (("--resize", "crop"), "resize: got 'crop', expected fixed or letterbox"),
        (("--precision", "fp8"), "precision: got 'fp8', expected fp32 or fp16 or bf16 or int8"),
        (("--trt", "--trt-module", "onnx"), "trt: got module 'onnx', expected tensorrt or tensorrt_rtx"),
        (("--imgsz", "64"), "size: got (64, 64) without resize"),
    ]:
        code, found = run("export", model, "-o", tmp_path / "bundle", *flags)
        assert code in (1, 2)
        assert text in found
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(typer.BadParameter, match="--widths got '1,a,3'"):
        numbers("1,a,3", "--widths")


def test_a_run_without_validation_images_has_none(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert validation_part(tmp_path) is None
    (tmp_path / "config.yaml").write_text("pretext: siamese\ndata:\n  paths: [x]\n")
    assert validation_part(tmp_path) is None
    (tmp_path / "config.yaml").write_text("steps: 1\ndata:\n  paths: [nowhere/at/all]\n")
    with caplog.at_level("WARNING"):
        assert validation_part(tmp_path) is None
    assert "The run's validation images are not to be had: nowhere/at/all" in caplog.text
    part = validation_part(model)
    assert part is not None
    assert len(part) == 3
