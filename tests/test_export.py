"""Export to ONNX: what comes out computes what PyTorch does, or does not come out."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import supervision as sv
import torch
from PIL import Image
from test_detector_face import NAMES, tiny_model

import siamdetr
from siamdetr.detector import SiamDETR
from siamdetr.evaluation.coco import evaluate
from siamdetr.evaluation.predictor import ScoredBoxes
from siamdetr.export import onnx as exporter
from siamdetr.export import runtime
from siamdetr.export.bundle import METADATA_KEY, ExportError
from siamdetr.export.onnx import ExportResult, check_free_dimensions, export_onnx
from siamdetr.export.parity import ParityCheck, ParityReport, check_parity, check_sizes, compare, example_images
from siamdetr.export.runtime import OnnxDetector
from siamdetr.preprocessing import Prepared, PreprocessingSpec

KINDS = [("conditional", "focal"), ("vanilla", "softmax")]  # an export takes seconds: two cover both of each


@dataclasses.dataclass(frozen=True)
class Exported:
    model: SiamDETR
    result: ExportResult


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Exported]:
    models = {kind: tiny_model(*kind) for kind in KINDS}
    return {
        kind: Exported(model, export_onnx(model, tmp_path_factory.mktemp("bundle"))) for kind, model in models.items()
    }


@pytest.fixture(params=KINDS, ids="-".join)
def exported(request: pytest.FixtureRequest, bundles: dict[tuple[str, str], Exported]) -> Exported:
    return bundles[request.param]


@pytest.fixture
def bundle(bundles: dict[tuple[str, str], Exported]) -> Exported:
    return bundles["conditional", "focal"]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    pixels = example_images(6, 90, 120)
    shapes = [(60, 80), (80, 60), (60, 80), (90, 120), (60, 80), (75, 51)]
    return [Image.fromarray(p.transpose(1, 2, 0)[:h, :w]) for p, (h, w) in zip(pixels, shapes, strict=True)]


def detections(found: sv.Detections | list[sv.Detections]) -> list[sv.Detections]:
    return found if isinstance(found, list) else [found]


def test_every_kind_of_detector_exports_within_tolerance(exported: Exported) -> None:
    report = exported.result.parity
    assert report.passed
    assert {check.batch_size for check in report.checks} == {1, 2, 5}
    assert any(check.height % 32 and check.width % 32 for check in report.checks)
    assert report.largest_error < 1e-4
    assert any(check.box_error > 0 for check in report.checks)  # the boxes are not all alike


def test_the_exported_file_predicts_like_the_model(exported: Exported, pictures: list[Image.Image]) -> None:
    loaded = siamdetr.load(exported.result.onnx_file)
    assert isinstance(loaded, OnnxDetector)
    assert loaded.class_names == NAMES
    expected = detections(exported.model.predict(pictures, 0.3, 4))
    for batch_size in (1, 4):
        for a, b in zip(expected, detections(loaded.predict(pictures, 0.3, batch_size)), strict=True):
            assert len(a) > 0
            assert np.allclose(a.xyxy, b.xyxy, atol=0.02)
            assert np.allclose(np.asarray(a.confidence), np.asarray(b.confidence), atol=1e-4)
            assert list(a.data["class_name"]) == list(b.data["class_name"])


def test_pictures_of_one_feature_cell_are_found_the_same(exported: Exported) -> None:
    exporters = OnnxDetector(exported.result.folder)
    for height, width in ((20, 70), (70, 20), (9, 9)):
        images = example_images(2, height, width)
        batch = Prepared(images, None, np.array([[480, 640], [60, 50]]), np.array([[height, width]] * 2))
        expected, found = exported.model.predict_batch(batch), exporters.predict_batch(batch)
        assert max(compare(expected, found, 1, (60, 50))) < 1e-4


def test_batch_height_and_width_are_free_in_the_saved_graph(bundle: Exported) -> None:
    graph = onnx.load(bundle.result.onnx_file)
    shapes = {
        value.name: [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in [*graph.graph.input, *graph.graph.output]
    }
    assert shapes["images"] == ["batch", 3, "height", "width"]
    assert shapes["original_sizes"] == ["batch", 2]
    assert [shapes[name][0] for name in ("boxes", "scores", "labels")] == ["batch"] * 3
    assert graph.opset_import[0].version == 18


def test_a_constant_dimension_is_an_error(bundle: Exported, tmp_path: Path) -> None:
    graph = onnx.load(bundle.result.onnx_file)
    dimension = graph.graph.input[0].type.tensor_type.shape.dim[2]
    dimension.ClearField("dim_param")
    dimension.dim_value = 224
    with pytest.raises(ExportError, match=r"made 'height' of input 'images' constant \(224\), expected it free"):
        check_free_dimensions(graph, tmp_path / "model.onnx")


def test_a_bundle_says_what_it_is(bundle: Exported) -> None:
    folder = bundle.result.folder
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "manifest.json", "labels.txt", "infer.py"}
    assert (folder / "labels.txt").read_text().split() == list(NAMES)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["class_names"] == list(NAMES)
    assert manifest["category_ids"] == [1, 5, 9]
    assert manifest["parity"]["verdict"] == "PASS"
    assert len(manifest["parity"]["checks"]) == 3
    metadata = {entry.key: entry.value for entry in onnx.load(bundle.result.onnx_file).metadata_props}
    card = json.loads(metadata[METADATA_KEY])
    assert card["class_names"] == list(NAMES)
    assert card["lineage"] == ["a test"]
    assert PreprocessingSpec.model_validate(card["preprocessing"]) == bundle.model.preprocessing
    assert card["versions"]["torch"] == torch.__version__.split("+")[0]


def test_a_bundle_folder_is_loaded_and_explained(bundle: Exported) -> None:
    loaded = siamdetr.load(bundle.result.folder)
    assert isinstance(loaded, OnnxDetector)
    assert loaded.category_ids == (1, 5, 9)
    assert loaded.info["providers"] == ["CPUExecutionProvider"]
    assert loaded.info["detector"]["variant"] == "conditional"


def test_infer_py_alone_finds_what_the_model_finds(
    bundle: Exported, pictures: list[Image.Image], tmp_path: Path
) -> None:
    """Runs the bundle's script in a process where neither torch nor siamdetr can be imported."""
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, image in zip(files, pictures, strict=False):
        image.save(file)
    blocker = "import sys; sys.modules.update(torch=None, siamdetr=None); sys.argv = sys.argv[1:]; import runpy; "
    command = [sys.executable, "-c", blocker + "runpy.run_path(sys.argv[0], run_name='__main__')"]
    script = str(bundle.result.folder / "infer.py")
    answer = subprocess.run(
        [*command, script, *map(str, files), "--threshold", "0.3"], capture_output=True, text=True, check=True
    )
    for entry, file in zip(json.loads(answer.stdout), files, strict=True):
        (expected,) = detections(bundle.model.predict(file, 0.3))
        assert entry["file"] == str(file)
        assert [found["name"] for found in entry["detections"]] == list(expected.data["class_name"])
        assert np.allclose([found["box"] for found in entry["detections"]], expected.xyxy, atol=0.02)


def test_an_exported_model_can_be_scored(bundle: Exported, real_data: Path) -> None:
    from siamdetr.data.open import open_dataset

    index = dataclasses.replace(
        open_dataset(real_data / "bccd", split="test").subset(range(6)), class_names=NAMES, category_ids=(1, 5, 9)
    )
    ours, theirs = evaluate(bundle.model, index), evaluate(OnnxDetector(bundle.result.folder), index)
    assert ours.ap == pytest.approx(theirs.ap, abs=1e-4)


def test_parity_on_given_images(bundle: Exported, pictures: list[Image.Image]) -> None:
    assert check_parity(bundle.model, bundle.result.onnx_file, images=pictures).passed


def test_parity_sees_weights_that_are_not_those_of_the_file(bundle: Exported) -> None:
    other = tiny_model("conditional", "focal")
    with torch.no_grad():
        other.detector.box_head.layers[-1].bias.add_(0.01)
    report = check_parity(other, bundle.result.onnx_file)
    assert not report.passed
    assert "differs from PyTorch at batch" in report.failure()
    assert "allowed: 0.0001" in report.failure()


def test_a_graph_that_differs_is_rejected_and_an_older_bundle_stays(
    bundle: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in bundle.result.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    bad = ParityReport((ParityCheck(2, 333, 413, 0.3, 0.2, 0.0),))
    monkeypatch.setattr(exporter, "check_parity", lambda *_, **__: bad)
    monkeypatch.setattr(exporter, "_slim", lambda graph, _: graph)
    monkeypatch.setattr(exporter, "_export_graph", lambda _, file: shutil.copy(bundle.result.onnx_file, file))
    text = r"model\.onnx\.rejected: differs from PyTorch at batch 2 of 333×413 pixels: scores by 0\.3, boxes by 0\.2"
    with pytest.raises(ExportError, match=text):
        export_onnx(bundle.model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.onnx", "model.onnx.rejected", "manifest.json", "labels.txt", "infer.py"
    }  # fmt: skip
    assert OnnxDetector(tmp_path).class_names == NAMES
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(ExportError, match=r"no such file; model\.onnx\.rejected beside it failed its check"):
        OnnxDetector(tmp_path)


def test_comparison_does_not_mind_order_but_minds_all_else() -> None:
    generator = np.random.default_rng(0)
    scores = np.sort(generator.uniform(0.2, 1, (1, 9)).astype(np.float32))
    labels = generator.integers(0, 3, (1, 9))
    boxes = generator.uniform(0, 100, (1, 9, 4)).astype(np.float32)
    answer = ScoredBoxes(scores, labels, boxes)
    turned = ScoredBoxes(scores[:, ::-1], labels[:, ::-1], boxes[:, ::-1])
    assert compare(answer, turned, 0, (100, 100)) == (0.0, 0.0)
    moved = boxes.copy()
    moved[0, 5, 2] += 1
    assert compare(answer, ScoredBoxes(scores, labels, moved), 0, (100, 100))[1] == pytest.approx(0.01, abs=1e-6)
    named = labels.copy()
    named[0, 5] = 7
    assert compare(answer, ScoredBoxes(scores, named, boxes), 0, (100, 100)) == (np.inf, np.inf)
    broken = scores.copy()
    broken[0, 3] = np.nan
    report = ParityReport(
        (ParityCheck(1, 8, 8, compare(answer, ScoredBoxes(broken, labels, boxes), 0, (9, 9))[0], 0, 0),)
    )
    assert not report.passed


def test_the_sizes_compared_are_odd_ones_too() -> None:
    assert check_sizes(PreprocessingSpec()) == [(800, 1066), (401, 533), (355, 267)]


def test_what_cannot_be_exported_is_refused(bundle: Exported, tmp_path: Path) -> None:
    boxed = tiny_model(spec=PreprocessingSpec(mode="letterbox", size=(64, 64)))
    with pytest.raises(ExportError, match="'letterbox' pads images"):
        export_onnx(boxed, tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="file: cannot be written"):
        export_onnx(bundle.model, tmp_path / "file")


def test_files_that_are_not_ours_are_refused(bundle: Exported, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(bundle.result.onnx_file.read_bytes()[:10_000])
    with pytest.raises(ExportError, match=r"broken\.onnx: ONNX Runtime cannot open it"):
        siamdetr.load(broken)
    with pytest.raises(ExportError, match=r"none\.onnx: no such file; make it with"):
        siamdetr.load(tmp_path / "none.onnx")
    graph = onnx.load(bundle.result.onnx_file)
    card = json.loads(graph.metadata_props[0].value)
    for text, message in [
        (None, "not one that siamdetr exported"),
        (json.dumps({**card, "format_version": 99}), "format version 99"),
        (json.dumps({**card, "preprocessing": {"mode": "?"}}), "its metadata is damaged"),
        ("{", "its metadata is damaged"),
    ]:
        del graph.metadata_props[:]
        if text is not None:
            onnx.helper.set_model_props(graph, {METADATA_KEY: text})
        onnx.save(graph, tmp_path / "other.onnx")
        with pytest.raises(ExportError, match=message):
            OnnxDetector(tmp_path / "other.onnx")


def test_a_padded_batch_is_refused(bundle: Exported) -> None:
    images = np.zeros((1, 3, 64, 64), dtype=np.uint8)
    padding = np.ones((1, 64, 64), dtype=np.bool_)
    batch = Prepared(images, padding, np.array([[64, 64]]), np.array([[32, 32]]))
    with pytest.raises(ValueError, match="got a padded batch, expected images of one size"):
        OnnxDetector(bundle.result.folder).predict_batch(batch)


def test_a_silent_fall_back_to_the_cpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = runtime._wanted_providers("cuda:1")
    assert wanted == [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"]
    with pytest.raises(
        ExportError, match=r"asked ONNX Runtime for CUDAExecutionProvider, got CPUExecutionProvider: it fell"
    ):
        runtime._check_providers(wanted, ("CPUExecutionProvider",), required=True)
    with pytest.raises(ExportError, match="device: got 'tpu', expected cpu, cuda"):
        runtime._wanted_providers("tpu")
    monkeypatch.setattr(runtime, "_cuda_at_hand", lambda: False)
    assert runtime._wanted_providers("auto") == ["CPUExecutionProvider"]
