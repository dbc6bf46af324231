"""A manifest suffices to write a client.

A second client, written from its entries alone with another library, sees the same pixels and boxes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.exported import NAMES, export_variant
from PIL import Image

from siamdetr.errors import ExportError
from siamdetr.export import infer
from siamdetr.export.bundle import labels_text, read_card
from siamdetr.export.manifest_text import describe_preparation
from siamdetr.export.options import ExportOptions
from siamdetr.images.preprocessing import PreprocessingSpec, resize

SIZES = [
    (60, 80),
    (80, 60),
    (64, 64),
    (37, 101),
    (300, 9),
    (300, 7),
    (300, 1),
    (7, 300),
    (480, 641),
    (1, 50),
    (500, 333),
]
SPECS = [
    PreprocessingSpec.from_size(96),
    PreprocessingSpec(mode="shortest-edge", size=48, max_size=64),
    PreprocessingSpec(mode="shortest-edge", size=48, max_size=None),
    PreprocessingSpec.from_size((96, 130)),
    PreprocessingSpec(mode="letterbox", size=(96, 130)),
]


def wanted_size(spec: dict[str, Any], height: int, width: int) -> tuple[int, int]:
    """Entry 3_size, in integers; Python's round takes halves to the even number."""
    if spec["mode"] == "fixed":
        return tuple(spec["size"])
    if spec["mode"] == "letterbox":
        scale = min(spec["size"][0] / height, spec["size"][1] / width)
        return max(1, round(height * scale)), max(1, round(width * scale))
    short, long, side = min(height, width), max(height, width), spec["size"]
    if spec["max_size"] is not None and long / short * side > spec["max_size"]:
        side = max(1, round(spec["max_size"] * short / long))
    other = max(1, side * long // short)
    return (side, other) if height <= width else (other, side)


def prepared(spec: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
    """Entries 3_size and 4_filter, with PyTorch instead of Pillow.

    One pass per direction, each rounded to 8 bits.
    """
    height, width = wanted_size(spec, *pixels.shape[:2])
    values = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    values = along_rows(along_rows(values, width).mT, height).mT
    return values[0].permute(1, 2, 0).byte().numpy()


def along_rows(values: torch.Tensor, length: int) -> torch.Tensor:
    """Resize [B, C, H, W] to W = length.

    Only rows are resized: for columns of images of width 1, PyTorch 2.15 computes other values than its own filter
    gives.
    """
    if length == values.shape[3]:
        return values
    resized = torch.nn.functional.interpolate(
        values.contiguous(), (values.shape[2], length), mode="bilinear", antialias=True
    )
    return (resized + 0.5).floor().clamp(0, 255)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.mode}-{spec.max_size}")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_rules_give_the_same_size_and_pixels(spec: PreprocessingSpec, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(size[0]).integers(0, 256, (*size, 3), dtype=np.uint8)
    ours, theirs = resize(Image.fromarray(pixels), spec), prepared(spec.model_dump(mode="json"), pixels)
    assert theirs.shape == ours.shape
    apart = np.abs(theirs.astype(int) - ours)
    assert apart.max() <= 2  # grey levels: Pillow's weights have 22 bits, and halves fall to either side
    assert apart.mean() < 0.2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manifest")
    export_variant("vanilla", folder, ExportOptions(threshold=0.1))
    return folder


def detections(folder: Path, pixels: np.ndarray) -> list[tuple[str, float, list[float]]]:
    """A client that knows nothing but manifest.json and the model."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["preparing_images"]["6_normalisation"]["where"].startswith("in the graph")
    reading = manifest["reading_detections"]
    session = onnxruntime.InferenceSession(folder / manifest["files"]["model"], providers=["CPUExecutionProvider"])
    height, width = pixels.shape[:2]
    feed = {
        "images": prepared(manifest["preprocessing"], pixels).transpose(2, 0, 1)[None],
        "original_sizes": np.array([[height, width]], dtype=np.int64),
    }
    boxes, scores, labels = (output[0] for output in session.run(["boxes", "scores", "labels"], feed))
    assert len(scores) == reading["k"]
    boxes = boxes.clip(0, [width, height, width, height])
    order = [i for i in np.argsort(-scores, kind="stable") if scores[i] >= reading["threshold"]]
    return [(manifest["class_names"][labels[i]], float(scores[i]), boxes[i].tolist()) for i in order]


def test_a_client_from_the_manifest_alone_finds_what_infer_py_finds(bundle: Path) -> None:
    reference = infer.Detector(bundle / "model.onnx")
    for seed, size in enumerate(((60, 80), (90, 50), (200, 333))):
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
        expected = reference.predict(pixels)
        found = detections(bundle, pixels)
        assert len(found) == len(expected) > 0
        boxes = np.array([one["box"] for one in expected])
        scores = np.array([one["score"] for one in expected])
        for name, score, box in found:  # in any order: the scores of this detector lie close together
            near = np.abs(boxes - box).max(-1) < 0.02 * max(size)
            near &= np.abs(scores - score) < 0.01
            assert any(expected[i]["name"] == name for i in np.flatnonzero(near))


def test_the_rules_follow_the_mode() -> None:
    plain, padded = (describe_preparation(spec) for spec in (SPECS[0], SPECS[4]))
    assert plain["5_padding"] is None
    assert padded["5_padding"]["value"] == 0
    assert list(plain) == list(padded)


def test_the_file_is_as_old_as_its_operators_allow(bundle: Path) -> None:
    graph = onnx.load(bundle / "model.onnx")
    assert [entry.version for entry in graph.opset_import if not entry.domain] == [18]
    assert graph.ir_version == 8
    assert not any(node.metadata_props for node in graph.graph.node)
    onnx.checker.check_model(graph)
    assert json.loads((bundle / "manifest.json").read_text())["ir_version"] == 8


def test_the_threshold_of_the_file_is_obeyed_by_infer_py_and_load(bundle: Path) -> None:
    import siamdetr

    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    model = siamdetr.load(bundle)
    assert model.threshold == 0.1
    assert len(model.predict(pixels)) == len(infer.Detector(bundle / "model.onnx").predict(pixels)) > 0
    assert len(model.predict(pixels)) == len(model.predict(pixels, 0.1)) > len(model.predict(pixels, 0.99))


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan"), "0.5", True, None])
def test_a_threshold_that_is_no_score_is_damage(bundle: Path, threshold: Any) -> None:
    card = json.loads((bundle / "manifest.json").read_text())
    with pytest.raises(ExportError, match=r"metadata is damaged .threshold: got"):
        read_card(json.dumps({**card, "threshold": threshold}), bundle)


def test_a_line_break_in_a_name_shifts_no_label() -> None:
    names = ("a\nb", "c\r\nd", "e\u2028f", "", "g\x0bh")
    assert labels_text(names).split("\n") == ["a b", "c d", "e f", "", "g h", ""]
    assert labels_text(names).splitlines() == ["a b", "c d", "e f", "", "g h"]
    assert labels_text(NAMES) == "".join(f"{name}\n" for name in NAMES)


def broken(bundle: Path, folder: Path) -> Path:
    """The model with weights that are no numbers."""
    graph = onnx.load(bundle / "model.onnx")
    largest = max(
        (one for one in graph.graph.initializer if one.data_type == 1 and len(one.dims) == 2),
        key=lambda one: np.prod(one.dims),
    )
    values = np.full(tuple(largest.dims), np.nan, np.float32)
    largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))
    onnx.save(graph, folder / "model.onnx")
    return folder / "model.onnx"


def test_a_model_whose_answers_are_no_numbers_is_an_error_everywhere(bundle: Path, tmp_path: Path) -> None:
    import siamdetr

    file = broken(bundle, tmp_path)
    pixels = np.zeros((60, 80, 3), np.uint8)
    for threshold in (0.0, 0.5, None):
        with pytest.raises(ValueError, match="not finite numbers"):
            siamdetr.load(file).predict(pixels, threshold)
        with pytest.raises(ValueError, match="not finite numbers"):
            infer.Detector(file).predict(pixels, threshold)


def run_infer(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, infer.__file__, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_one_bad_picture_does_not_end_the_list(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    files = [tmp_path / name for name in ("bad.png", "good.png", "none.png")]
    answer = run_infer(*files, "--model", bundle / "model.onnx", "--threshold", 0)
    rows = json.loads(answer.stdout)
    assert answer.returncode == 1
    assert [("detections" in row, "error" in row) for row in rows] == [(False, True), (True, False), (False, True)]
    assert len(rows[1]["detections"]) == 20
    assert [line.partition(":")[0] for line in answer.stderr.splitlines()] == [str(files[0]), str(files[2])]
    wrong = run_infer(files[1], "--model", tmp_path / "bad.png")
    assert (wrong.returncode, len(wrong.stderr.splitlines()), "Traceback" in wrong.stderr) == (1, 1, False)
    assert run_infer(files[1], "--model", bundle / "model.onnx", "--threshold", 3).returncode == 2


def test_providers_may_have_options(bundle: Path) -> None:
    with_options = infer.Detector(bundle / "model.onnx", (("CPUExecutionProvider", {}),))
    assert with_options.class_names == list(NAMES)


def test_a_picture_may_be_bytes_a_file_or_a_path(bundle: Path, tmp_path: Path) -> None:
    import siamdetr

    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    model, reference = siamdetr.load(bundle), infer.Detector(bundle / "model.onnx")
    expected = model.predict(path, 0.1)
    assert len(expected) > 0
    with path.open("rb") as file:
        ways = [str(path), path.read_bytes(), bytearray(path.read_bytes()), memoryview(path.read_bytes()), file]
        for way in ways:
            assert np.array_equal(model.predict(way, 0.1).xyxy, expected.xyxy)
        assert [len(one) for one in model.predict([path, path.read_bytes()], 0.1)] == [len(expected)] * 2
        assert reference.predict(path.read_bytes(), 0.1) == reference.predict(path, 0.1)
