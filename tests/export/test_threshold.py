"""A threshold chosen on labelled images: stored in every kind of file, and obeyed by all that open it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.data_sets import write_coco
from helpers.tiny_models import tiny_model
from typer.testing import CliRunner

import siamdetr
from siamdetr.cli.__main__ import app
from siamdetr.errors import ExportError
from siamdetr.export import infer
from siamdetr.export.bundle import read_manifest
from siamdetr.export.threshold import store_threshold
from siamdetr.model_file import load_model
from siamdetr.serve.demo.answers import Answers, NamedModel


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def test_a_model_file_keeps_all_but_its_threshold(tmp_path: Path) -> None:
    model = tiny_model()
    model.save(tmp_path / "best.safetensors")
    assert store_threshold(tmp_path, 0.25, "best F1 on cats") == tmp_path / "best.safetensors"
    opened = siamdetr.load(tmp_path)
    assert (opened.threshold, opened.threshold_from) == (0.25, "best F1 on cats")
    detector, metadata = load_model(tmp_path)
    assert metadata.lineage == model.metadata.lineage
    expected = model.detector.state_dict()
    assert all(bool((expected[name] == tensor).all()) for name, tensor in detector.state_dict().items())


def test_an_export_takes_the_chosen_threshold_over(tmp_path: Path) -> None:
    from siamdetr.export.onnx import export_onnx

    tiny_model().save(tmp_path / "model.safetensors")
    store_threshold(tmp_path / "model.safetensors", 0.75, "precision 0.9 on cats")
    export_onnx(siamdetr.SiamDETR.load(tmp_path / "model.safetensors"), tmp_path / "bundle", gate=False)
    opened = siamdetr.load(tmp_path / "bundle")
    assert (opened.threshold, opened.threshold_from) == (0.75, "precision 0.9 on cats")


def test_graph_and_manifest_of_a_bundle_say_the_same(bundle: Path) -> None:
    before = onnx.load(bundle / "model.onnx").graph.SerializeToString(deterministic=True)
    for path in (bundle, bundle / "model.onnx", bundle / "model.engine"):
        assert store_threshold(path, 0.3, "a test") == bundle
    card, manifest = read_manifest(bundle)  # its digest is the new graph's
    assert (card.threshold, card.threshold_from, manifest["reading_detections"]["threshold"]) == (0.3, "a test", 0.3)
    assert manifest["gate"]["verdict"] == "PASS"
    assert siamdetr.load(bundle).threshold == infer.Detector(bundle / "model.onnx").threshold == 0.3
    assert onnx.load(bundle / "model.onnx").graph.SerializeToString(deterministic=True) == before
    assert sorted(path.name for path in bundle.iterdir()) == ["infer.py", "labels.txt", "manifest.json", "model.onnx"]


def test_a_lone_onnx_file_is_changed_and_a_foreign_manifest_is_not(bundle: Path, tmp_path: Path) -> None:
    lone = Path(shutil.copy(bundle / "model.onnx", tmp_path / "alone.onnx"))
    assert store_threshold(lone, 0.3, "a test") == lone
    assert siamdetr.load(lone).threshold == 0.3
    shutil.copy(lone, bundle / "model.onnx")
    with pytest.raises(ExportError, match="not the file that manifest"):
        store_threshold(bundle, 0.2, "a test")


def test_the_demo_begins_at_a_chosen_threshold_alone(tmp_path: Path) -> None:
    from PIL import Image

    model = tiny_model()
    model.save(tmp_path / "model.safetensors")
    store_threshold(tmp_path / "model.safetensors", 0.25, "a test")
    models = [NamedModel("given", model), NamedModel("chosen", siamdetr.load(tmp_path / "model.safetensors"))]
    answer = Answers(models).detect(Image.new("RGB", (64, 48)), "picture")
    assert [one["threshold"] for one in answer["models"]] == [None, 0.25]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that is right about some objects of a data set, by the order of its scores."""
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "data")
    tiny_model().save("model.safetensors")
    return tmp_path


def val(*arguments: object) -> tuple[int, str]:
    answer = CliRunner().invoke(app, ["val", *map(str, arguments), "--data", "data", "--split", "train"])
    return answer.exit_code, f"{answer.output} {answer.exception}"


def test_best_is_stored_and_obeyed_by_predict_and_label(place: Path) -> None:
    """The truth is what the model itself detects above .6, so its best threshold lies there."""
    model = siamdetr.load("model.safetensors")
    document = json.loads((place / "data/annotations/instances_train.json").read_text())
    document["annotations"] = []
    document["categories"] = [
        {"id": number, "name": name} for number, name in zip(model.category_ids, model.class_names, strict=True)
    ]
    scores = []
    for image in document["images"]:
        found = model.predict(place / "data/train" / image["file_name"], threshold=0.0)
        order = np.argsort(-np.asarray(found.confidence))[:3]  # type: ignore[union-attr]
        scores += [float(found.confidence[row]) for row in order]  # type: ignore[union-attr, index]
        for row in order:
            x0, y0, x1, y1 = (float(value) for value in found.xyxy[row])  # type: ignore[union-attr]
            box = [x0, y0, x1 - x0, y1 - y0]
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": model.category_ids[int(found.class_id[row])],  # type: ignore[union-attr, index]
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    (place / "data/annotations/instances_train.json").write_text(json.dumps(document))
    code, text = val("model.safetensors", "--threshold", "best")
    assert code == 0, text
    opened = siamdetr.load("model.safetensors")
    assert 0 < opened.threshold <= max(scores)
    assert opened.threshold_from.startswith("best F1 on data (train")
    assert "is stored in model.safetensors" in text
    assert f"Mistakes at {opened.threshold:.3f}" in text
    answer = CliRunner().invoke(app, ["predict", "model.safetensors", "data/train"])
    rows = json.loads(Path("predictions/predictions.json").read_text())
    kept = [box["score"] for row in rows for box in row["detections"]]
    assert answer.exit_code == 0
    assert kept
    assert min(kept) >= opened.threshold - 1e-5  # the file rounds
    answer = CliRunner().invoke(app, ["label", "model.safetensors", "data/train", "-o", "labels"])
    assert f"Bands: sure from {opened.threshold:.3f}" in answer.output


@pytest.mark.parametrize(
    ("threshold", "text"),
    [
        ("1.5", "expected a score from 0 to 1, best, or precision=P"),
        ("bset", "threshold: got 'bset'"),
        ("recall=0.9", "threshold: got 'recall=0.9'"),
        ("precision=", "threshold: got 'precision='"),
        ("precision=nan", "threshold: got 'precision=nan'"),
        ("precision=90", "precision: got 90, expected a share above 0 and at most 1"),
    ],
)
def test_a_threshold_that_makes_no_sense_is_refused_before_the_model_runs(
    place: Path, threshold: str, text: str
) -> None:
    code, said = val("nothing.safetensors", "--threshold", threshold)
    assert code == 1
    assert text in said


def test_results_hold_no_threshold(place: Path) -> None:
    code, said = val("results.json", "--threshold", "best")
    assert code == 1
    assert "MODEL is a file of results, which holds no threshold" in said


def test_a_precision_out_of_reach_leaves_the_file_alone(place: Path) -> None:
    before = Path("model.safetensors").read_bytes()
    code, said = val("model.safetensors", "--threshold", "precision=1")
    assert code == 1
    assert "no threshold reaches a precision of 1" in said
    assert Path("model.safetensors").read_bytes() == before
