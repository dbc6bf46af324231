"""The model repository for Triton, read by Triton's own protobufs."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from helpers.paths import ROOT
from typer.testing import CliRunner

from siamdetr.cli.__main__ import app
from siamdetr.errors import ExportError
from siamdetr.export import client
from siamdetr.export.onnx import ExportResult
from siamdetr.export.runtime import OnnxDetector
from siamdetr.export.triton import TritonSettings, config_text, write_model_repository
from siamdetr.images.preprocessing import PreprocessingSpec, resized_size

TRITON_PYTHON = ROOT / "build" / "triton-venv" / "bin" / "python"
READER = """
import sys
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
print(json_format.MessageToJson(text_format.Parse(sys.stdin.read(), ModelConfig()), preserving_proto_field_name=True))
"""
DEFAULT = TritonSettings()
SPEC = PreprocessingSpec.from_size((96, 128))
NAMES = ("cat", 'a "dog"\\', "Zelle ä細胞")


def read(config: str) -> dict[str, Any]:
    """A configuration as Triton reads it."""
    if not TRITON_PYTHON.exists():
        pytest.skip("Triton's protobufs are not installed: `make triton` does it, in an environment of their own")
    answer = subprocess.run([TRITON_PYTHON, "-c", READER], input=config, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ValueError(answer.stderr.strip().splitlines()[-1])
    values: dict[str, Any] = json.loads(answer.stdout)
    return values


def text(settings: TritonSettings = DEFAULT, spec: PreprocessingSpec = SPEC) -> str:
    return config_text("siamdetr", "onnxruntime", NAMES, spec, settings)


def test_triton_reads_the_configuration_as_it_is_meant() -> None:
    config = read(text(TritonSettings(max_batch=4, max_delay=500, queue_size=9)))
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("siamdetr", "onnxruntime", 4)
    assert config["input"][0] == {"name": "images", "data_type": "TYPE_UINT8", "dims": ["3", "-1", "-1"]}
    assert [one["name"] for one in config["output"]] == ["boxes", "scores", "labels"]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == "500"
    policy = config["dynamic_batching"]["default_queue_policy"]
    assert policy["max_queue_size"] == 9
    assert policy.get("timeout_action", "REJECT") == "REJECT"  # the default value, which JSON leaves out
    assert [one["batch_size"] for one in config["model_warmup"]] == [1, 4]
    assert config["model_warmup"][0]["inputs"]["images"]["dims"] == ["3", "96", "128"]
    card = json.loads(config["parameters"]["siamdetr"]["string_value"])
    assert card["class_names"] == list(NAMES)
    assert PreprocessingSpec.model_validate(card["preprocessing"]).size == (96, 128)


def test_a_model_that_pads_is_told_what_is_picture_also_when_it_warms_up() -> None:
    config = read(text(spec=PreprocessingSpec(mode="letterbox", size=(96, 160))))
    assert [(one["name"], one["data_type"], one["dims"]) for one in config["input"]] == [
        ("images", "TYPE_UINT8", ["3", "96", "160"]),
        ("original_sizes", "TYPE_INT64", ["2"]),
        ("valid_sizes", "TYPE_INT64", ["2"]),
    ]
    for warm_up in config["model_warmup"]:
        assert warm_up["inputs"].keys() == {"images", "original_sizes", "valid_sizes"}
        assert warm_up["inputs"]["images"]["dims"] == ["3", "96", "160"]
        assert warm_up["inputs"]["valid_sizes"] == {
            "data_type": "TYPE_INT64",
            "dims": ["2"],
            "input_data_file": "valid_sizes",
        }


@pytest.mark.parametrize("bundle", ["tiny_bundle", "letterbox_bundle"])
def test_the_model_takes_what_its_warm_up_gives(bundle: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """As Triton builds it: zeros, or a file of one row, which is repeated for every row of the batch."""
    write_model_repository(request.getfixturevalue(bundle), tmp_path)
    folder = tmp_path / "siamdetr"
    config = read((folder / "config.pbtxt").read_text())
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
    assert [one.name for one in session.get_inputs()] == [one["name"] for one in config["input"]]
    for warm_up in config["model_warmup"]:
        feed = {}
        for name, value in warm_up["inputs"].items():
            dims, dtype = list(map(int, value["dims"])), np.dtype(value["data_type"].removeprefix("TYPE_").lower())
            file = value.get("input_data_file")
            content = (
                bytes(int(np.prod(dims)) * dtype.itemsize) if file is None else (folder / "warmup" / file).read_bytes()
            )
            feed[name] = np.repeat(np.frombuffer(content, dtype).reshape(1, *dims), warm_up["batch_size"], axis=0)
        if "valid_sizes" in feed:
            assert (feed["valid_sizes"] == resized_size((480, 640), OnnxDetector(folder / "1").preprocessing)).all()
        assert all(np.isfinite(output).all() for output in session.run(None, feed))


@pytest.mark.parametrize(("right", "wrong"), [("max_queue_size", "max_queue_sise"), ("TYPE_UINT8", "TYPE_UINT9")])
def test_a_typo_in_the_configuration_is_found(right: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        read(text().replace(right, wrong))


def test_a_repository_holds_the_model_its_labels_and_the_client(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    for _ in range(2):  # the second time over the first
        assert write_model_repository(tiny_bundle, folder) == ["siamdetr"]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"client.py", "siamdetr/config.pbtxt", "siamdetr/labels.txt", "siamdetr/1/model.onnx"}
    assert (folder / "siamdetr/1/model.onnx").read_bytes() == (tiny_bundle / "model.onnx").read_bytes()
    assert (folder / "siamdetr/labels.txt").read_text() == (tiny_bundle / "labels.txt").read_text()
    assert (folder / "client.py").read_text() == Path(client.__file__).read_text()
    assert read((folder / "siamdetr/config.pbtxt").read_text())["name"] == "siamdetr"


def test_an_engine_becomes_a_second_model(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "model.onnx").symlink_to(tiny_bundle / "model.onnx")
    (bundle / "model.engine").write_bytes(b"an engine")
    settings = dataclasses.replace(TritonSettings(), name="cells")
    assert write_model_repository(bundle, tmp_path / "repository", settings) == ["cells", "cells_tensorrt"]
    assert (tmp_path / "repository/cells_tensorrt/1/model.plan").read_bytes() == b"an engine"
    assert 'backend: "tensorrt"' in (tmp_path / "repository/cells_tensorrt/config.pbtxt").read_text()


def test_the_command_line_writes_a_repository_beside_the_bundle(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from helpers.tiny_models import tiny_model

    def export(model: object, folder: Path, **_: object) -> ExportResult:
        shutil.copytree(tiny_bundle, folder)
        file = folder / "model.onnx"
        return ExportResult(folder, file, gate=None, precision={}, num_nodes=1, num_bytes=1, seconds=0.0)

    monkeypatch.setattr("siamdetr.export.onnx.export_onnx", export)
    tiny_model().save(tmp_path / "model.safetensors")
    arguments = [
        "export",
        tmp_path / "model.safetensors",
        "-o",
        tmp_path / "bundle",
        "--triton",
        tmp_path / "repository",
    ]
    answer = CliRunner().invoke(app, list(map(str, arguments)))
    assert answer.exit_code == 0, answer.output
    assert (tmp_path / "repository/siamdetr/config.pbtxt").is_file()
    assert "models siamdetr; client:" in " ".join(answer.output.split())


def test_what_makes_no_repository_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"triton: got the name '\.\./x', expected letters, digits"):
        write_model_repository(tiny_bundle, tmp_path, TritonSettings(name="../x"))
    with pytest.raises(ExportError, match=r"model\.onnx: no such file; make it with `siamdetr export`"):
        write_model_repository(tmp_path, tmp_path / "repository")
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"file: cannot be written"):
        write_model_repository(tiny_bundle, tmp_path / "file")
