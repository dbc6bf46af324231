"""The gate between two files: ours, and made-up ONNX files of every form that other programs write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.data_sets import write_coco, write_image
from helpers.tiny_models import tiny_model
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from siamdetr.cli.__main__ import app
from siamdetr.errors import ExportError
from siamdetr.export.declaration import KNOWN, Declaration, read_declaration
from siamdetr.export.foreign import ForeignDetector
from siamdetr.export.gate.difference import difference
from siamdetr.export.gate.files import NamedFile, compare_files
from siamdetr.images.preprocessing import preprocess
from siamdetr.inference.predictor import ScoredBoxes, predict

NAMES = ("cat", "dog")
SIZE = (80, 80)
# Two objects of a 60 × 40 image as fractions cx, cy, w, h, and one that is nothing.
FRACTIONS = np.array([[0.25, 0.5, 0.5, 0.5], [0.75, 0.25, 0.25, 0.5], [0.5, 0.5, 0.1, 0.1]], dtype=np.float32)
PROBABILITIES = np.array([[0.9, 0.2], [0.1, 0.8], [0.01, 0.02]], dtype=np.float32)
EXPECTED = np.array([[0, 10, 30, 30], [37.5, 0, 52.5, 20]], dtype=np.float32)  # pixels of the 60 × 40 image


def graph_file(
    path: Path,
    outputs: dict[str, np.ndarray],
    *,
    inputs: Sequence[tuple[str, int, list[Any]]] = (("input", TensorProto.FLOAT, [1, 3, *SIZE]),),
) -> Path:
    """A graph that answers with constants; its inputs are used, so that they stay inputs."""
    nodes, values = [], []
    for name, kind, _ in inputs:
        nodes.append(helper.make_node("Cast", [name], [f"{name}_f"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("ReduceSum", [f"{name}_f"], [f"{name}_s"], keepdims=0))
        nodes.append(helper.make_node("Mul", [f"{name}_s", "zero"], [f"{name}_0"]))
        values.append(helper.make_tensor_value_info(name, kind, inputs[len(values)][2]))
    nodes.append(helper.make_node("Sum", [f"{name}_0" for name, _, _ in inputs], ["nothing"]))
    given, made = [numpy_helper.from_array(np.float32(0), "zero")], []
    for name, array in outputs.items():
        given.append(numpy_helper.from_array(array.astype(np.float32), f"{name}_c"))
        target = name if array.dtype != np.int64 else f"{name}_f"
        nodes.append(helper.make_node("Add", [f"{name}_c", "nothing"], [target]))
        if array.dtype == np.int64:
            nodes.append(helper.make_node("Cast", [target], [name], to=TensorProto.INT64))
        kind = TensorProto.INT64 if array.dtype == np.int64 else TensorProto.FLOAT
        made.append(helper.make_tensor_value_info(name, kind, list(array.shape)))
    graph = helper.make_graph(nodes, "constant", values, made, given)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def logit(values: np.ndarray) -> np.ndarray:
    return np.log(values / (1 - values))


def found(
    path: Path, spec: str | Declaration, image: Path, threshold: float = 0.5
) -> list[tuple[str, float, list[float]]]:
    declaration = read_declaration(spec) if isinstance(spec, str) else spec
    detections = predict(ForeignDetector(path, declaration, class_names=NAMES), [image], threshold=threshold)
    assert isinstance(detections, list)
    one = detections[0]
    rows = zip(one.data["class_name"], one.confidence, one.xyxy, strict=True)  # type: ignore[arg-type]
    return [(str(name), round(float(score), 3), box.round(2).tolist()) for name, score, box in rows]


WANTED = [("cat", 0.9, EXPECTED[0].tolist()), ("dog", 0.8, EXPECTED[1].tolist())]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_image(tmp_path / "image.png", size=(60, 40))


def test_logits_of_rf_detr(tmp_path: Path, image: Path) -> None:
    file = graph_file(tmp_path / "a.onnx", {"dets": FRACTIONS[None], "labels": logit(PROBABILITIES)[None]})
    assert found(file, "rf-detr", image) == WANTED


def test_softmax_with_no_object_last_of_transformers(tmp_path: Path, image: Path) -> None:
    rest = 1 - PROBABILITIES.max(1, keepdims=True)
    shares = np.concatenate([PROBABILITIES, rest], axis=1)
    shares[:, :2] *= (PROBABILITIES.max(1, keepdims=True) == PROBABILITIES) + 1e-6
    shares /= shares.sum(1, keepdims=True)
    inputs = [("pixel_values", TensorProto.FLOAT, [1, 3, *SIZE]), ("pixel_mask", TensorProto.INT64, [1, *SIZE])]
    file = graph_file(
        tmp_path / "a.onnx", {"logits": np.log(shares)[None], "pred_boxes": FRACTIONS[None]}, inputs=inputs
    )
    assert found(file, "transformers-detr", image) == WANTED


def test_the_joined_output_of_ultralytics_over_a_letterbox(tmp_path: Path, image: Path) -> None:
    """60 × 40 in 80 × 80: enlarged by 4/3 to 80 × 53, 13 pixels from the top."""
    scale, top = np.array([80 / 60, 53 / 40], dtype=np.float32), (80 - 53) // 2
    corners = EXPECTED.reshape(2, 2, 2) * scale + np.array([0, top], dtype=np.float32)
    centre, side = corners.mean(1), corners[:, 1] - corners[:, 0]
    boxes = np.concatenate([centre, side], axis=1)
    shifted = boxes + np.array([1, 0, 0, 0], dtype=np.float32)  # nearly the same box again: suppressed
    joined = np.concatenate(
        [np.concatenate([boxes, shifted]), np.concatenate([PROBABILITIES[:2], PROBABILITIES[:2] - 0.05])], axis=1
    )
    file = graph_file(tmp_path / "a.onnx", {"output0": joined.T[None]})
    names = [(name, score) for name, score, _ in WANTED]
    got = found(file, "ultralytics", image)
    assert [(name, score) for name, score, _ in got] == names
    assert np.allclose([box for _, _, box in got], EXPECTED, atol=0.02)


def test_detections_of_rt_detr_with_labels_by_number(tmp_path: Path, image: Path) -> None:
    inputs = [("images", TensorProto.FLOAT, [1, 3, *SIZE]), ("orig_target_sizes", TensorProto.INT64, [1, 2])]
    outputs = {
        "labels": np.array([[3, 7, 5]], dtype=np.int64),
        "boxes": np.concatenate([EXPECTED, EXPECTED[:1]])[None],
        "scores": np.array([[0.9, 0.8, 0.7]], dtype=np.float32),
    }
    file = graph_file(tmp_path / "a.onnx", outputs, inputs=inputs)
    spec = tmp_path / "spec.yaml"
    spec.write_text("like: rt-detr\nclasses: {3: cat, 7: dog}\n")  # 5 is neither
    assert found(file, str(spec), image) == WANTED


def test_columns_are_category_ids_where_there_are_more_than_classes(tmp_path: Path, image: Path) -> None:
    wide = np.full((3, 8), 0.001, dtype=np.float32)
    wide[:, [2, 7]] = PROBABILITIES
    file = graph_file(tmp_path / "a.onnx", {"dets": FRACTIONS[None], "labels": logit(wide)[None]})
    model = ForeignDetector(file, KNOWN["rf-detr"], class_names=NAMES, category_ids=(2, 7))
    scored = model.predict_batch(preprocess([image], model.preprocessing))
    best = np.argsort(-scored.scores[0])[:2]
    assert [NAMES[label] for label in scored.labels[0, best]] == ["cat", "dog"]
    with pytest.raises(ExportError, match="8 columns of scores, 2 classes in the data; declare `classes`"):
        ForeignDetector(file, KNOWN["rf-detr"], class_names=NAMES, category_ids=(2, 9))


def test_what_a_declaration_lacks_is_said(tmp_path: Path, image: Path) -> None:
    free = [("input", TensorProto.FLOAT, ["n", 3, "h", "w"])]
    file = graph_file(tmp_path / "a.onnx", {"dets": FRACTIONS[None], "labels": logit(PROBABILITIES)[None]}, inputs=free)
    with pytest.raises(ExportError, match=r"its input has a free size, \[h, w\]; declare `size: \[H, W\]`"):
        ForeignDetector(file, KNOWN["rf-detr"], class_names=NAMES)
    with pytest.raises(ExportError, match=r"labels .1, 3, 2.: expected one output of labels and one of scores"):
        found(file, Declaration(size=SIZE, form="detections"), image)
    flat = graph_file(tmp_path / "b.onnx", {"scores": PROBABILITIES})
    with pytest.raises(ExportError, match=r"scores .3, 2.: no output fits the form 'logits'; declare another `form`"):
        found(flat, "rf-detr", image)
    with pytest.raises(ExportError, match="no such file, and none of rf-detr, rt-detr"):
        read_declaration("yolo")
    (tmp_path / "spec.yaml").write_text("sizes: [1, 2]")
    with pytest.raises(ExportError, match="not a declaration"):
        read_declaration(str(tmp_path / "spec.yaml"))


def test_boxes_below_the_least_score_are_counterparts_and_are_not_judged() -> None:
    def scored(*scores: float) -> ScoredBoxes:
        boxes = np.array([[[10.0 * i, 0, 10.0 * i + 5, 5] for i in range(len(scores))]], dtype=np.float32)
        return ScoredBoxes(np.array([scores], dtype=np.float32), np.zeros((1, len(scores)), dtype=np.int64), boxes)

    def apart(a: ScoredBoxes, b: ScoredBoxes) -> float:
        return difference(a, b, 0, (100, 100), scores=0.01, boxes=0.01, least=0.05).matched

    assert apart(scored(0.9, 0.052), scored(0.9, 0.048)) == 1
    assert apart(scored(0.9, 0.052), scored(0.9)) == 1  # by chance below the bound
    assert apart(scored(0.9, 0.04), scored(0.9, 0.01)) == 1
    assert apart(scored(0.9, 0.5), scored(0.9)) == 0.5
    assert apart(scored(0.9), scored(0.01)) == 0
    assert apart(scored(0.01), scored(0.02)) == 1


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "data")
    outputs = {"dets": FRACTIONS[None], "labels": logit(PROBABILITIES)[None]}
    graph_file(tmp_path / "one.onnx", outputs)
    graph_file(tmp_path / "same.onnx", {"boxes": FRACTIONS[None] + 1e-4, "logits": logit(PROBABILITIES)[None]})
    moved = FRACTIONS + np.array([0.2, 0, 0, 0], dtype=np.float32)
    graph_file(tmp_path / "moved.onnx", {"dets": moved[None], "labels": logit(PROBABILITIES)[None]})
    return tmp_path


def gate(*arguments: object) -> tuple[int, str]:
    answer = CliRunner().invoke(app, ["gate", *map(str, arguments), "--data", "data", "-o", "out"])
    return answer.exit_code, f"{answer.output} {answer.exception}"


def test_a_file_that_computes_the_same_passes(place: Path) -> None:
    code, text = gate("one.onnx", "same.onnx", "--spec-a", "rf-detr", "--spec-b", "rf-detr")
    assert code == 0, text
    assert (
        "PASS at fp16: 100.0% of the boxes of one.onnx and same.onnx have a counterpart on 3 images (2 classes)" in text
    )
    report = json.loads(Path("out/gate.json").read_text())
    assert (report["verdict"], report["matched"], len(report["images"])) == ("PASS", 1.0, 3)
    assert Path("out/report.html").read_text().count("data:image/jpeg") == 3
    assert len(list(Path("out/images").iterdir())) == 3


def test_a_file_whose_boxes_are_moved_fails_with_figures(place: Path) -> None:
    code, text = gate("one.onnx", "moved.onnx", "--spec-a", "rf-detr", "--spec-b", "rf-detr")
    assert code == 1
    assert "FAIL at fp16" in text
    assert "0.0% of the boxes have a counterpart within 0.01 (scores) and 0.005 of the image (expected 98%)" in text
    assert "out of tolerance" in Path("out/report.html").read_text()


def test_a_foreign_file_without_a_declaration_names_the_flag(place: Path) -> None:
    code, text = gate("one.onnx", "moved.onnx", "--spec-a", "rf-detr")
    assert code == 1
    assert "moved.onnx: another program wrote it, so say how it is fed and read: --spec-b with rf-detr" in text


def test_a_model_file_and_its_bundle_pass(tiny_bundle: Path, tmp_path: Path) -> None:
    import siamdetr

    write_coco(tmp_path / "data")
    files = [
        NamedFile("model", tiny_model(), "PyTorch"),
        NamedFile("bundle", siamdetr.load(tiny_bundle), "ONNX Runtime"),
    ]
    images = sorted((tmp_path / "data/train").iterdir())
    report = compare_files(files[0], files[1], images, precision="fp32")
    assert report.passed, report.failures()
    assert report.classes == ("cat", "dog", "cell")
