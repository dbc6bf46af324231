"""Export to ONNX: every variant passes the gate in every precision, and the bundle says what it is."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import supervision as sv
import torch
from helpers.exported import NAMES, VARIANTS, export_variant, model_of, same_detections, traced
from PIL import Image

import siamdetr
from siamdetr.errors import ExportError
from siamdetr.evaluation.coco import evaluate
from siamdetr.export import onnx_graph as tracing
from siamdetr.export.bundle import METADATA_KEY, digest_file
from siamdetr.export.end_to_end import DETECTIONS, padding_of
from siamdetr.export.gate.difference import difference
from siamdetr.export.gate.images import drawn_images, drawn_samples
from siamdetr.export.onnx import export_onnx
from siamdetr.export.onnx_graph import check_free_dimensions, simplify, with_outputs
from siamdetr.export.options import ExportOptions, Precision
from siamdetr.export.runtime import OnnxDetector
from siamdetr.images.preprocessing import Prepared, PreprocessingSpec

# All that can be asked for at once, so that it is traced once.
FULL = {
    "conditional": ExportOptions(resize="letterbox", size=(96, 160), attention=True, raw=True),
    "deformable": ExportOptions(resize="letterbox", size=(96, 160), attention=True, raw=True, sampling="grid"),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_variant("conditional", tmp_path_factory.mktemp("bundle")).folder


@pytest.fixture(scope="module", params=FULL)
def full(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, OnnxDetector]:
    """A variant's name, and its export with padding, attention and raw outputs; it has passed the gate."""
    result = export_variant(request.param, tmp_path_factory.mktemp("full"), FULL[request.param])
    assert result.gate is not None
    assert result.gate.passed
    return request.param, OnnxDetector(result.folder)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    pixels = drawn_images(6, 90, 120)
    shapes = [(60, 80), (80, 60), (60, 80), (90, 120), (60, 80), (75, 51)]
    return [Image.fromarray(p.transpose(1, 2, 0)[:h, :w]) for p, (h, w) in zip(pixels, shapes, strict=True)]


def listed(found: sv.Detections | list[sv.Detections]) -> list[sv.Detections]:
    return found if isinstance(found, list) else [found]


def same(a: list[sv.Detections], b: list[sv.Detections]) -> bool:
    """Whether two lists hold the same detections, except for rounding."""
    return all(same_detections(x, y) for x, y in zip(a, b, strict=True))


# In float32, tests/models/test_detectors.py exports every detector of the registry.
# DINO needs a second attempt in half precision: tests/export/test_attempts.py.
CASES = [
    ("two-stage", "fp32"),
    *((name, "fp16") for name in VARIANTS if name != "dino"),
    ("conditional", "bf16"),
]


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_every_variant_passes_the_gate(name: str, precision: Precision, tmp_path: Path) -> None:
    result = export_variant(name, tmp_path, ExportOptions(precision=precision))
    assert result.gate is not None
    assert result.gate.passed
    assert {check.batch_size for check in result.gate.checks} == {1, 2, 5}
    assert any(check.box_error > 0 for check in result.gate.checks)  # the boxes are not all alike
    assert result.precision["asked"] == precision
    if precision != "fp32":
        assert result.num_bytes < 0.75 * result.precision["bytes_fp32"]
        assert result.precision[f"multiplications_in_{precision}"] > 0.8 * result.precision["multiplications"]


def test_a_model_goes_from_weights_to_a_bundle(tmp_path: Path, pictures: list[Image.Image]) -> None:
    model = model_of("vanilla")
    before = copy.deepcopy(model.detector.state_dict())
    seen: list[tuple[int, int]] = []
    result = export_onnx(model, tmp_path / "new" / "bundle", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(torch.equal(value, before[key]) for key, value in model.detector.state_dict().items())
    assert {path.name for path in result.folder.iterdir()} == {"model.onnx", "manifest.json", "labels.txt", "infer.py"}
    assert same(listed(model.predict(pictures, 0.0)), listed(siamdetr.load(result.folder).predict(pictures, 0.0)))


def test_the_exported_file_predicts_like_the_model(bundle: Path, pictures: list[Image.Image]) -> None:
    loaded = siamdetr.load(bundle / "model.onnx")
    assert isinstance(loaded, OnnxDetector)
    assert loaded.class_names == NAMES
    expected = listed(model_of("conditional").predict(pictures, 0.0, 4))
    for batch_size in (1, 4):
        assert same(expected, listed(loaded.predict(pictures, 0.0, batch_size)))


@pytest.mark.parametrize("size", [(20, 70), (70, 20), (9, 9)])
def test_pictures_of_one_feature_cell_are_found_the_same(bundle: Path, size: tuple[int, int]) -> None:
    batch = Prepared(drawn_images(2, *size), None, np.array([[480, 640], [60, 50]]), np.array([size] * 2))
    expected, found = model_of("conditional").predict_batch(batch), OnnxDetector(bundle).predict_batch(batch)
    assert difference(expected, found, 1, (60, 50), scores=1e-4, boxes=1e-4).matched == 1


def test_batch_height_and_width_are_free_in_the_saved_graph(bundle: Path) -> None:
    graph = onnx.load(bundle / "model.onnx")
    shapes = {
        value.name: [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in [*graph.graph.input, *graph.graph.output]
    }
    assert shapes["images"] == ["batch", 3, "height", "width"]
    assert shapes["original_sizes"] == ["batch", 2]
    assert [shapes[name][0] for name in DETECTIONS] == ["batch"] * 3
    assert [value.name for value in graph.graph.output] == list(DETECTIONS)
    assert graph.opset_import[0].version == 18
    onnx.checker.check_model(graph, full_check=True)


def test_a_constant_dimension_is_an_error(bundle: Path) -> None:
    graph = onnx.load(bundle / "model.onnx")
    dimension = graph.graph.input[0].type.tensor_type.shape.dim[2]
    dimension.ClearField("dim_param")
    dimension.dim_value = 224
    with pytest.raises(ExportError, match=r"made 'height' of input 'images' constant \(224\), expected it free"):
        check_free_dimensions(graph, "model.onnx")


def test_a_bundle_says_what_it_is(bundle: Path) -> None:
    assert (bundle / "labels.txt").read_text().split() == list(NAMES)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["class_names"] == list(NAMES)
    assert manifest["category_ids"] == [1, 5, 9]
    assert manifest["gate"]["verdict"] == "PASS"
    assert manifest["gate"]["tolerance"]["scores"] == 1e-4
    assert len(manifest["gate"]["checks"]) == 3
    assert all(check["logit_error"] < 1e-4 for check in manifest["gate"]["checks"])
    assert manifest["sha256"]["model.onnx"] == digest_file(bundle / "model.onnx")
    assert manifest["inputs"]["images"]["type"] == "uint8"
    assert set(manifest["outputs_described"]) == set(DETECTIONS)
    metadata = {entry.key: entry.value for entry in onnx.load(bundle / "model.onnx").metadata_props}
    card = json.loads(metadata[METADATA_KEY])
    assert card["class_names"] == list(NAMES)
    assert card["lineage"] == ["a test"]
    assert card["threshold"] == 0.5
    assert PreprocessingSpec.model_validate(card["preprocessing"]) == model_of("conditional").preprocessing
    assert card["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"onnx", "onnxscript", "onnxslim", "onnxruntime", "siamdetr"} <= set(card["versions"])


def test_a_bundle_folder_is_loaded_and_explained(bundle: Path) -> None:
    loaded = siamdetr.load(bundle)
    assert isinstance(loaded, OnnxDetector)
    assert loaded.category_ids == (1, 5, 9)
    assert loaded.info["providers"] == ["CPUExecutionProvider"]
    assert loaded.info["detector"]["variant"] == "conditional"
    assert loaded.info["precision"] == "fp32"


def test_an_exported_model_can_be_scored(bundle: Path, real_data: Path) -> None:
    from siamdetr.data.readers.recognise import open_dataset

    index = dataclasses.replace(
        open_dataset(real_data / "bccd", split="test").subset(range(6)), class_names=NAMES, category_ids=(1, 5, 9)
    )
    ours, theirs = evaluate(model_of("conditional"), index), evaluate(OnnxDetector(bundle), index)
    assert ours.ap == pytest.approx(theirs.ap, abs=1e-4)


def test_raw_gives_logits_and_boxes_of_all_queries_as_well(full: tuple[str, OnnxDetector]) -> None:
    _, loaded = full
    batch = Prepared(drawn_images(2, 96, 128), None, np.array([[96, 128]] * 2), np.array([[96, 128]] * 2))
    logits, fractions = loaded.run(("logits", "fractions"), batch)
    assert logits.shape == (2, 20, 3)
    assert fractions.shape == (2, 20, 4)
    scores = np.sort((1 / (1 + np.exp(-logits[0]))).ravel())[::-1]
    assert np.allclose(scores, np.sort(loaded.predict_batch(batch).scores[0])[::-1], atol=1e-5)


def test_letterboxed_images_are_found_as_pytorch_finds_them(
    full: tuple[str, OnnxDetector], pictures: list[Image.Image]
) -> None:
    name, loaded = full
    assert loaded.preprocessing == PreprocessingSpec(mode="letterbox", size=(96, 160))
    boxed = siamdetr.SiamDETR.from_parts(model_of(name).detector, class_names=NAMES, preprocessing=loaded.preprocessing)
    assert same(listed(boxed.predict(pictures, 0.0)), listed(loaded.predict(pictures, 0.0)))
    manifest = json.loads((loaded.path.parent / "manifest.json").read_text())
    assert manifest["inputs"]["valid_sizes"]["shape"] == ["batch", 2]


def test_padding_is_right_of_and_below_the_image() -> None:
    padding = padding_of(torch.tensor([[2, 3], [1, 4]]), 3, 4)
    assert padding.shape == (2, 3, 4)
    assert padding[0].tolist() == [[False] * 3 + [True]] * 2 + [[True] * 4]
    assert padding[1].tolist() == [[False] * 4, [True] * 4, [True] * 4]


def test_attention_is_that_of_the_last_layer(full: tuple[str, OnnxDetector], pictures: list[Image.Image]) -> None:
    name, loaded = full
    boxed = siamdetr.SiamDETR.from_parts(model_of(name).detector, class_names=NAMES, preprocessing=loaded.preprocessing)
    assert np.allclose(loaded.attention(pictures[0])[0], boxed.attention(pictures[0])[-1], atol=1e-5)


def test_each_box_says_which_query_it_came_from(full: tuple[str, OnnxDetector]) -> None:
    _, loaded = full
    batch = Prepared(drawn_images(1, 96, 128), None, np.array([[1, 1]]), np.array([[96, 128]]))
    boxes, queries, fractions = loaded.run(("boxes", "queries", "fractions"), batch)
    centres, sizes = fractions[0, queries[0], :2], fractions[0, queries[0], 2:]
    assert np.allclose(boxes[0], np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1), atol=1e-5)


def test_a_file_without_attention_says_how_to_get_it(bundle: Path, pictures: list[Image.Image]) -> None:
    with pytest.raises(ExportError, match="has no attention; export it with `siamdetr export --attention`"):
        OnnxDetector(bundle).attention(pictures[0])


def test_deformable_attention_can_be_exported_as_grid_sample(full: tuple[str, OnnxDetector]) -> None:
    name, loaded = full
    operators = {node.op_type for node in onnx.load(loaded.path).graph.node}
    assert ("GridSample" in operators) == (name == "deformable")


@pytest.mark.parametrize("name", VARIANTS)
def test_no_graph_has_grid_sample_unless_asked_for(name: str) -> None:
    assert "GridSample" not in {node.op_type for node in traced(name).graph.node}


def test_simplifying_is_given_up_where_it_changes_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = with_outputs(traced("conditional"), DETECTIONS)

    def spoil(model: onnx.ModelProto) -> onnx.ModelProto:
        weights = next(weight for weight in model.graph.initializer if len(weight.raw_data) > 1000)
        weights.raw_data = b"\0" * len(weights.raw_data)
        return model

    def fail(model: onnx.ModelProto) -> onnx.ModelProto:
        raise RuntimeError("a tool's own trouble")

    for broken in (spoil, fail):
        monkeypatch.setattr(tracing.onnxslim, "slim", broken)
        assert simplify(graph) is graph


def test_files_that_are_not_ours_are_refused(bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes((bundle / "model.onnx").read_bytes()[:10_000])
    for backend, name in (("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO")):
        if backend == "openvino":
            pytest.importorskip("openvino")
        with pytest.raises(ExportError, match=rf"broken\.onnx: {name} cannot open it .*; is it whole\?"):
            siamdetr.load(broken, backend=backend)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"none\.onnx: no such file; make it with"):
        siamdetr.load(tmp_path / "none.onnx")
    graph = onnx.load(bundle / "model.onnx")
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


def test_a_card_of_an_older_file_is_still_read(bundle: Path, tmp_path: Path) -> None:
    graph = onnx.load(bundle / "model.onnx")
    card = json.loads(graph.metadata_props[0].value)
    for name in ("precision", "threshold", "outputs", "options"):
        del card[name]
    onnx.helper.set_model_props(graph, {METADATA_KEY: json.dumps(card)})
    onnx.save(graph, tmp_path / "older.onnx")
    assert OnnxDetector(tmp_path / "older.onnx").card.precision == "fp32"


def test_a_padded_batch_is_refused(bundle: Path) -> None:
    images = np.zeros((1, 3, 64, 64), dtype=np.uint8)
    padding = np.ones((1, 64, 64), dtype=np.bool_)
    batch = Prepared(images, padding, np.array([[64, 64]]), np.array([[32, 32]]))
    with pytest.raises(ValueError, match="got a padded batch, expected images of one size"):
        OnnxDetector(bundle).predict_batch(batch)


def test_int8_measures_its_scales_on_images(tmp_path: Path, pictures: list[Image.Image]) -> None:
    options = ExportOptions(precision="int8")
    with pytest.raises(ExportError, match=r"int8: got no images, and the range .* give --data DIR"):
        export_onnx(model_of("conditional"), tmp_path / "none", options=options)
    assert not (tmp_path / "none").exists()
    model = copy.deepcopy(model_of("conditional"))
    for parameter in (*model.detector.class_head.parameters(), *model.detector.box_head.parameters()):
        parameter.detach().mul_(0.25)  # random heads enlarge every error, where trained ones bring queries together
    result = export_onnx(model, tmp_path, options=options, samples=drawn_samples())
    assert result.gate is not None
    assert result.gate.passed
    assert result.num_bytes < 0.75 * result.precision["bytes_fp32"]
    assert {(row.precision, row.backend) for row in result.runtimes} >= {
        ("fp32", "onnxruntime"),
        ("int8", "onnxruntime"),
    }
    assert all(row.milliseconds > 0 for row in result.runtimes)
    own = next(row for row in result.runtimes if (row.precision, row.backend) == ("fp32", "onnxruntime"))
    assert own.score_error == own.box_error == 0
    assert not (tmp_path / "fp32.onnx").exists()
    operators = [node.op_type for node in onnx.load(result.onnx_file).graph.node]
    assert "DynamicQuantizeLinear" not in operators
    assert operators.count("QuantizeLinear") > 20
    assert len(listed(OnnxDetector(tmp_path).predict(pictures, 0.0))) == len(pictures)
