"""The gate: files that pass, files that fail, and that only the order of boxes is ignored."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.exported import NAMES, export_variant, model_of, traced

from siamdetr.api import SiamDETR
from siamdetr.data.index import DetectionIndex
from siamdetr.data.readers.recognise import open_dataset
from siamdetr.errors import ExportError
from siamdetr.export.gate.ap_comparison import ApComparison
from siamdetr.export.gate.checks import (
    TOLERANCES,
    GateCheck,
    GateReport,
    check_sizes,
    pytorch_reference,
    run_gate,
)
from siamdetr.export.gate.difference import difference
from siamdetr.export.gate.images import Samples, drawn_images, drawn_samples, samples_of
from siamdetr.export.onnx import export_onnx, write_bundle
from siamdetr.export.options import ExportOptions
from siamdetr.export.runtime import OnnxDetector
from siamdetr.images.preprocessing import Prepared, PreprocessingSpec
from siamdetr.inference.predictor import ScoredBoxes
from siamdetr.inference.pytorch import PyTorchPredictor


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_variant("conditional", tmp_path_factory.mktemp("gate")).folder


def moved(model: SiamDETR, by: float) -> SiamDETR:
    """The same model with moved boxes."""
    detector = copy.deepcopy(model.detector)
    with torch.no_grad():
        detector.box_head.layers[-1].bias.add_(by)
    return SiamDETR.from_parts(detector, class_names=NAMES, preprocessing=model.preprocessing, category_ids=(1, 5, 9))


def reference(by: float = 0.0) -> PyTorchPredictor:
    """PyTorch's outputs; with `by`, those of a model with moved boxes."""
    model = model_of("conditional")
    return pytorch_reference(moved(model, by) if by else model, model.preprocessing)


class Spoilt:
    """An exported model with a fault that only batches show."""

    def __init__(self, inner: OnnxDetector, fault: str) -> None:
        self.inner, self.fault = inner, fault
        self.class_names, self.preprocessing = inner.class_names, inner.preprocessing

    def predict_batch(self, batch: Prepared) -> ScoredBoxes:
        found = self.inner.predict_batch(batch)
        boxes = found.boxes.copy()
        if self.fault == "last row" and len(batch) > 1:
            boxes[-1] += 0.02
        if self.fault == "first row" and len(batch) > 1:
            boxes[0] += 0.02
        return dataclasses.replace(found, boxes=boxes)


def check(**changed: float) -> GateCheck:
    values = {
        "score_error": 0.0, "box_error": 0.0, "matched": 1.0, "compared": 1.0, "row_error": 0.0, "order_error": 0.0,
        "logit_error": 0.0,
    }  # fmt: skip
    return GateCheck(batch_size=2, height=333, width=413, **{**values, **changed})


def test_a_faithful_file_passes_at_all_batches_and_sizes(bundle: Path) -> None:
    report = run_gate(reference(), OnnxDetector(bundle), precision="fp32", runtime="a test", batch=(1, 3, 4))
    assert report.passed
    assert [check.batch_size for check in report.checks] == [1, 3, 4]
    assert any(check.height % 32 and check.width % 32 for check in report.checks)
    assert 0 < report.largest_error < 1e-4


def test_weights_that_are_not_those_of_the_file_are_seen(bundle: Path) -> None:
    report = run_gate(reference(0.01), OnnxDetector(bundle), precision="fp32", runtime="a test")
    assert not report.passed
    assert "differs from PyTorch at batch 1 of 96×128 pixels" in report.failures()[0]
    assert "have a counterpart within 0.0001 (scores) and 0.0001 of the image (expected 100%)" in report.failures()[0]


@pytest.mark.parametrize("fault", ["first row", "last row"])
def test_a_row_that_differs_from_its_equal_is_seen(bundle: Path, fault: str) -> None:
    report = run_gate(reference(), Spoilt(OnnxDetector(bundle), fault), precision="fp16", runtime="a test")
    texts = " ".join(report.failures())
    assert "equal images give boxes that differ by" not in texts  # 0.02 pixels are within fp16's tolerance
    report = run_gate(reference(), Spoilt(OnnxDetector(bundle), fault), precision="fp32", runtime="a test")
    texts = " ".join(report.failures())
    assert "batch 2: equal images give boxes that differ by" in texts
    assert "batch 5: images change their boxes by" in texts


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"matched": 0.99}, "99.0% of the boxes have a counterpart"),
        ({"compared": 0.4}, "40% could be judged"),
        ({"logit_error": 0.5}, "logits differ by 0.5 (allowed: 0.001)"),
        ({"logit_error": float("nan")}, "logits differ by nan"),
        ({"row_error": 0.3}, "equal images give boxes that differ by 0.3"),
        ({"order_error": float("inf")}, "change their boxes by inf when the batch is turned round"),
    ],
)
def test_each_figure_out_of_tolerance_is_named(changed: dict[str, float], text: str) -> None:
    report = GateReport("fp32", "a test", "nothing", (check(), check(**changed)))
    assert not report.passed
    (failure,) = report.failures()
    assert text in failure
    assert report.to_json()["verdict"] == "FAIL"


def test_a_loss_of_ap_is_named() -> None:
    report = GateReport("fp16", "a test", "nothing", (check(),), ApComparison(pytorch=0.41, exported=0.40, images=7))
    assert report.failures() == ["AP on 7 images is 0.4000, PyTorch's is 0.4100 (loss 0.0100 ± 0.0000, allowed: 0.003)"]
    gained = dataclasses.replace(report, ap=ApComparison(pytorch=0.40, exported=0.41, images=7))
    assert gained.passed


def test_a_loss_of_ap_counts_when_it_is_more_than_chance() -> None:
    unsure = ApComparison(pytorch=0.8433, exported=0.8392, images=20, half_width=0.008)
    report = GateReport("fp16", "a test", "nothing", (check(),), unsure)
    assert report.passed
    assert report.doubts() == [
        "AP on 20 images decides nothing: the loss is 0.0041 ± 0.0080, and 0.003 is allowed; give more images (--images)"
    ]
    sure = dataclasses.replace(report, ap=dataclasses.replace(unsure, half_width=0.0005))
    assert not sure.passed
    assert sure.doubts() == []
    small = dataclasses.replace(report, ap=ApComparison(pytorch=0.8, exported=0.8, images=500, half_width=0.001))
    assert small.passed
    assert small.doubts() == []
    none = dataclasses.replace(report, ap=ApComparison(float("nan"), float("nan"), 20))
    assert not none.passed


def test_looser_precisions_allow_more() -> None:
    for name in ("scores", "boxes", "logits", "ap"):
        allowed = [getattr(TOLERANCES[precision], name) for precision in ("fp32", "fp16", "bf16", "int8")]
        assert allowed == sorted(allowed)


def test_ap_of_both_is_compared_where_there_are_labels(bundle: Path, real_data: Path) -> None:
    truth = bccd(real_data)
    report = run_gate(
        reference(), OnnxDetector(bundle), precision="fp32", runtime="a test", truth=truth,
        samples=samples_of(truth, 3),
    )  # fmt: skip
    assert report.passed
    assert report.ap is not None
    assert report.ap.images == 4
    assert abs(report.ap.loss) < 1e-4
    assert report.source == f"3 images of {truth.root}"


def bccd(real_data: Path) -> DetectionIndex:
    index = open_dataset(real_data / "bccd", split="test").subset(range(4))
    return dataclasses.replace(index, class_names=NAMES, category_ids=(1, 5, 9))


def test_a_file_that_differs_is_rejected_and_an_older_bundle_stays(bundle: Path, tmp_path: Path) -> None:
    for path in bundle.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(
        ExportError, match=r"model\.onnx\.rejected: differs from PyTorch at batch 1 of 96×128 pixels: .*kept"
    ):
        write_bundle(moved(model_of("conditional"), 0.05), traced("conditional"), tmp_path, options=ExportOptions())
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.onnx", "model.onnx.rejected", "model.onnx.rejected.json", "manifest.json", "labels.txt", "infer.py"
    }  # fmt: skip
    assert json.loads((tmp_path / "model.onnx.rejected.json").read_text())["verdict"] == "FAIL"
    assert OnnxDetector(tmp_path).class_names == NAMES
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(ExportError, match=r"no such file; model\.onnx\.rejected beside it failed its check"):
        OnnxDetector(tmp_path)


def test_the_gate_can_be_skipped_and_the_manifest_says_so(tmp_path: Path) -> None:
    result = write_bundle(
        moved(model_of("conditional"), 0.05), traced("conditional"), tmp_path, options=ExportOptions(), gate=False
    )
    assert result.gate is None
    assert json.loads((tmp_path / "manifest.json").read_text())["gate"] == {"verdict": "SKIPPED"}


def test_comparison_does_not_mind_order_but_minds_all_else() -> None:
    generator = np.random.default_rng(0)
    scores = np.sort(generator.uniform(0.2, 1, (1, 9)).astype(np.float32))
    labels = generator.integers(0, 3, (1, 9))
    boxes = generator.uniform(0, 100, (1, 9, 4)).astype(np.float32)
    answer = ScoredBoxes(scores, labels, boxes)

    def compare(other: ScoredBoxes) -> tuple[float, float, float, float]:
        found = difference(answer, other, 0, (100, 100), scores=1e-4, boxes=1e-4)
        return found.score, found.box, found.matched, found.compared

    turned = ScoredBoxes(scores[:, ::-1], labels[:, ::-1], boxes[:, ::-1])
    assert compare(turned) == (0.0, 0.0, 1.0, 1.0)
    shifted = boxes.copy()
    shifted[0, 5, 2] += 1
    assert compare(ScoredBoxes(scores, labels, shifted)) == pytest.approx((0.0, 0.01, 8 / 9, 1.0), abs=1e-6)
    named = labels.copy()
    named[0, 5] = 7
    assert compare(ScoredBoxes(scores, named, boxes))[0] == np.inf
    broken = scores.copy()
    broken[0, 3] = np.nan
    assert compare(ScoredBoxes(broken, labels, boxes))[2] < 1
    nothing = ScoredBoxes(scores[:, :0], labels[:, :0], boxes[:, :0])
    assert compare(nothing) == (np.inf, np.inf, 0.0, 0.0)


def test_what_may_have_fallen_out_of_the_best_is_not_judged() -> None:
    a = ScoredBoxes(
        np.array([[0.9, 0.8, 0.30]]), np.zeros((1, 3), int), np.array([[[0, 0, 9, 9], [1, 1, 5, 5], [2, 2, 3, 3]]])
    )
    b = ScoredBoxes(
        np.array([[0.9, 0.8, 0.30]]), np.zeros((1, 3), int), np.array([[[0, 0, 9, 9], [1, 1, 5, 5], [7, 7, 8, 8]]])
    )
    found = difference(a, b, 0, (10, 10), scores=0.01, boxes=0.01)
    assert (found.matched, found.compared) == (1.0, pytest.approx(2 / 3))


def test_noise_of_equal_scores_is_not_taken_for_agreement() -> None:
    """Two answers without anything in common, all of whose scores are near the lowest."""
    generator = np.random.default_rng(0)
    answers = [
        ScoredBoxes(np.full((1, 50), 0.01, np.float32), np.zeros((1, 50), int), generator.uniform(0, 99, (1, 50, 4)))
        for _ in range(2)
    ]
    assert difference(*answers, 0, (100, 100), scores=0.01, boxes=0.005).compared == 0


def test_the_sizes_compared_are_odd_ones_too() -> None:
    assert check_sizes(PreprocessingSpec()) == [(800, 1066), (401, 533), (355, 267)]
    assert check_sizes(PreprocessingSpec(mode="letterbox", size=(64, 640))) == [(64, 640), (65, 321), (213, 65)]


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    model = model_of("conditional")
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="file: cannot be written"):
        export_onnx(model, tmp_path / "file")
    bare = SiamDETR.from_parts(
        model.detector, class_names=model.class_names, preprocessing=model.preprocessing, class_agnostic=True
    )
    with pytest.raises(ExportError, match="knows no classes, it was pretrained only; finetune it"):
        export_onnx(bare, tmp_path / "bare")
    assert not (tmp_path / "bare").exists()
    for values, text in [
        ({"batch": (0, 1, 2)}, r"batch: got 0,1,2, expected three numbers 1 <= least"),
        ({"batch": (1, 4, 2)}, r"batch: got 1,4,2, expected three numbers"),
        ({"precision": "fp8"}, r"precision: got 'fp8', expected fp32 or fp16 or bf16 or int8"),
        ({"resize": "crop"}, r"resize: got 'crop', expected fixed or letterbox"),
        ({"sampling": "triton"}, r"sampling: got 'triton', expected gather or grid"),
        ({"size": (64, 64)}, r"size: got \(64, 64\) without resize"),
        ({"threshold": 50.0}, r"threshold: got 50.0, expected a score from 0 to 1"),
    ]:
        with pytest.raises(ExportError, match=text):
            ExportOptions(**values)  # type: ignore[arg-type]


def test_a_model_too_large_for_one_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from siamdetr.export import onnx as exporter

    monkeypatch.setattr(exporter, "_LARGEST", 1000)
    with pytest.raises(ExportError, match="and one ONNX file holds at most 2"):
        export_onnx(model_of("conditional"), tmp_path)


def test_drawn_samples_are_always_the_same() -> None:
    assert np.array_equal(drawn_images(2, 8, 9), drawn_images(2, 8, 9))
    assert {np.asarray(image).shape for image in drawn_samples().images} == {
        (480, 640, 3), (333, 500, 3), (640, 480, 3), (375, 300, 3)
    }  # fmt: skip


def test_one_image_is_enough(bundle: Path) -> None:
    samples = Samples([drawn_images(1, 60, 80)[0].transpose(1, 2, 0)], "one image")
    assert run_gate(reference(), OnnxDetector(bundle), precision="fp32", runtime="a test", samples=samples).passed
