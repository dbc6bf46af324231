"""TensorRT: engines of every variant are built by the real parser and builder, and errors are named.

TensorRT-RTX builds without a GPU. Nothing here runs an engine: that takes a GPU.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.exported import VARIANTS, export_variant, model_of, traced

import siamdetr
from siamdetr.errors import ExportError
from siamdetr.export import add_engine as adding
from siamdetr.export import engine as engines
from siamdetr.export import tensorrt as building
from siamdetr.export.add_engine import add_engine
from siamdetr.export.bundle import digest_file
from siamdetr.export.end_to_end import DETECTIONS
from siamdetr.export.engine import EngineDetector, EngineFacts, check_module, choose_gpu, choose_profile, spans
from siamdetr.export.engine_precision import LayerPrecision, check_realised, read_inspector
from siamdetr.export.gate.images import drawn_samples
from siamdetr.export.int8.quantize import calibrated, to_int8
from siamdetr.export.onnx import write_bundle
from siamdetr.export.onnx_graph import with_outputs
from siamdetr.export.options import ExportOptions, Precision
from siamdetr.export.precision import to_half
from siamdetr.export.tensorrt import EngineOptions, Profile, build_engine, default_profile, failure_reason, find_module
from siamdetr.images.preprocessing import Prepared, PreprocessingSpec

PROFILE = Profile(batch=(1, 2, 4), height=(65, 96, 160), width=(65, 128, 160))
RTX = EngineOptions(module="tensorrt_rtx")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine in it."""
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("engine")
    export = ExportOptions(precision="fp16")
    write_bundle(model_of("conditional"), traced("conditional"), folder, options=export, gate=False)
    add_engine(folder, profiles=[PROFILE], options=RTX)
    return folder


def saved(graph: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(with_outputs(graph, DETECTIONS), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_an_engine_of_every_variant_is_built(name: str, precision: Precision, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    graph = traced(name) if precision == "fp32" else to_half(traced(name), "fp16").graph
    built = build_engine(saved(graph, tmp_path), precision=precision, profiles=[PROFILE], options=RTX)
    assert len(built.plan) > 10_000
    assert built.realised.share(precision) > (0.99 if precision == "fp32" else 0.8)
    assert built.realised.read_from == "network"  # there is no GPU to open the engine on


def test_int8_and_bf16_and_letterbox_build_too(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    source = calibrated(traced("vanilla"), drawn_samples().images, model_of("vanilla").preprocessing)
    integer = to_int8(source, tmp_path).graph
    assert build_engine(saved(integer, tmp_path), precision="int8", profiles=[PROFILE], options=RTX).plan
    letterbox = ExportOptions(resize="letterbox", size=(96, 160), attention=True)  # traced by test_export as well
    padded = to_half(traced("conditional", letterbox), "bf16").graph
    built = build_engine(saved(padded, tmp_path), precision="bf16", profiles=[PROFILE], options=RTX)
    assert built.realised.share("bf16") > 0.8


def test_fp16_that_came_out_as_float32_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(
        ExportError, match=r"asked for fp16, but only 0% of the multiplying layers are \(\d+ float; expected 80%"
    ):
        build_engine(saved(traced("conditional"), tmp_path), precision="fp16", profiles=[PROFILE], options=RTX)
    half = LayerPrecision("engine", {"half": 79, "float": 21}, {})
    with pytest.raises(ExportError, match=r"only 79% .*\(21 float, 79 half; expected 80%, read from the engine\)"):
        check_realised(half, "fp16")
    check_realised(half, "fp32")
    check_realised(LayerPrecision("engine", {"half": 80, "float": 20}, {}), "fp16")
    check_realised(LayerPrecision("engine", {"half": 40, "float": 60}, {}), "fp16", graph_share=0.44)
    with pytest.raises(ExportError, match=r"only 39% .*expected 40%"):
        check_realised(LayerPrecision("engine", {"half": 39, "float": 61}, {}), "fp16", graph_share=0.44)


def test_the_inspector_s_report_is_read() -> None:
    report = {
        "Layers": [
            {
                "Name": "conv1",
                "LayerType": "CaskConvolution",
                "Outputs": [{"Format/Datatype": "Channel major FP16 format"}],
            },
            {
                "Name": "__myl_x",
                "Metadata": "[ONNX Layer: node_MatMul_3]",
                "LayerType": "kgen",
                "Outputs": [{"Format/Datatype": "Half"}],
            },
            {"Name": "_gemm_mha_v2", "LayerType": "kgen", "Outputs": [{"Format/Datatype": "Float"}]},
            {"Name": "norm", "LayerType": "kgen", "Outputs": [{"Format/Datatype": "Row major linear FP32"}]},
            {"Name": "shape", "LayerType": "shape_call", "Outputs": [{"Format/Datatype": "Int64"}]},
            "a layer without details",
        ]
    }
    found = read_inspector(report)
    assert found.multiplying == {"half": 2, "float": 1}
    assert found.layers == {"half": 2, "float": 2}


def test_a_bundle_says_what_its_engine_is(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    entry = manifest["engine"]
    assert entry["sha256"] == digest_file(bundle / "model.engine")
    assert entry["module"] == "tensorrt_rtx"
    assert entry["profiles"] == [{"batch": [1, 2, 4], "height": [65, 96, 160], "width": [65, 128, 160]}]
    assert entry["precision_realised"]["read_from"] == "network"
    assert entry["gate"]["verdict"] == "SKIPPED"
    assert "no GPU here" in entry["gate"]["why"]
    assert manifest["gate"]["verdict"] == "SKIPPED"
    assert {path.name for path in bundle.iterdir()} == {
        "model.onnx", "model.engine", "manifest.json", "labels.txt", "infer.py"
    }  # fmt: skip


def test_a_timing_cache_is_written_and_read(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    options = EngineOptions(module="tensorrt_rtx", timing_cache=tmp_path / "cache", workspace=1.0)
    file = saved(traced("vanilla"), tmp_path)
    for _ in range(2):
        build_engine(file, precision="fp32", profiles=[PROFILE], options=options)
        assert (tmp_path / "cache").is_file()


def test_profiles_come_from_the_preprocessing() -> None:
    fixed = default_profile(PreprocessingSpec.from_size((320, 480)), (1, 1, 8))
    assert (fixed.height, fixed.width) == ((320,) * 3, (480,) * 3)
    free = default_profile(PreprocessingSpec(size=800, max_size=1333), (1, 2, 4))
    assert (free.height, free.width) == ((65, 800, 1333), (65, 1067, 1333))
    assert free.takes(800, 1333)
    assert not free.takes(800, 1334)
    with pytest.raises(ExportError, match="height: got 9,8,7, expected three numbers 1 <= least"):
        Profile((1, 1, 1), (9, 8, 7), (1, 1, 1))


def test_a_shape_outside_all_profiles_is_named() -> None:
    assert choose_profile([PROFILE, Profile((1, 1, 1), (1, 1, 640), (1, 1, 640))], 200, 640) == 1
    with pytest.raises(
        ExportError, match=r"got images of 96×161 pixels, built for \(height × width\) 65\.\.160 × 65\.\.160"
    ):
        choose_profile([PROFILE], 96, 161)


def test_large_batches_are_computed_in_parts() -> None:
    assert spans(9, (1, 2, 4)) == [(0, 4), (4, 8), (8, 9)]
    assert spans(1, (1, 2, 4)) == [(0, 1)]


def test_without_tensorrt_or_gpu_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ExportError,
        match=r"TensorRT is not installed: pip install 'siamdetr\[trt\]' .* without a GPU: pip install tensorrt-rtx",
    ):
        find_module(None)
    with pytest.raises(ExportError, match="TensorRT is not installed: pip install tensorrt-rtx"):
        find_module("tensorrt_rtx")
    monkeypatch.setattr(building.importlib.util, "find_spec", lambda name: object() if name == "tensorrt" else None)
    monkeypatch.setattr(building, "cuda_at_hand", lambda: False)
    with pytest.raises(ExportError, match="builds for the GPU that it finds, and there is none"):
        find_module(None)
    monkeypatch.setattr(building, "cuda_at_hand", lambda: True)
    assert find_module(None) == "tensorrt"
    with pytest.raises(ExportError, match="trt: got module 'onnx', expected tensorrt or tensorrt_rtx"):
        EngineOptions(module="onnx")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="workspace: got 0 GiB"):
        EngineOptions(workspace=0)


def test_graphs_that_tensorrt_cannot_read_are_named(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    graph = traced("vanilla")
    file = tmp_path / "model.onnx"
    dynamic = onnx.helper.make_node("DynamicQuantizeLinear", ["scores"], ["a", "b", "c"])
    graph.graph.node.append(dynamic)
    onnx.save(graph, file)
    with pytest.raises(
        ExportError, match=r"dynamically quantised \(DynamicQuantizeLinear\).*export with --int8, which is static"
    ):
        build_engine(file, precision="fp32", profiles=[PROFILE], options=RTX)
    del graph.graph.node[-1]
    graph.graph.node.append(onnx.helper.make_node("Det", ["boxes"], ["scores_of_nothing"], name="odd_one"))
    onnx.save(graph, file)
    with pytest.raises(ExportError, match=r"cannot read the graph: Det 'odd_one'"):
        build_engine(file, precision="fp32", profiles=[PROFILE], options=RTX)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ExportError, match=r"model\.onnx: not a whole ONNX file"):
        build_engine(file, precision="fp32", profiles=[PROFILE], options=RTX)


def test_memory_that_runs_out_is_said_so() -> None:
    text = failure_reason(["[defaultAllocator.cpp] Error Code 1: Cuda Runtime (out of memory)"])
    assert "the GPU ran out of memory" in text
    assert "take a smaller --batch or --workspace" in text
    assert failure_reason([]) == "it gave no reason"


def test_an_engine_is_not_opened_before_its_digest_is_right(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "copy")
    copy = tmp_path / "copy"
    (copy / "model.engine").write_bytes(b"a program of somebody else")
    with pytest.raises(ExportError, match=r"not the engine that manifest\.json vouches for .* An engine is a program"):
        siamdetr.load(copy / "model.engine")
    (copy / "model.engine").unlink()
    with pytest.raises(
        ExportError, match=r"model\.engine: no such file; build an engine with `siamdetr export MODEL --trt"
    ):
        siamdetr.load(copy, backend="tensorrt")
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["engine"]["profiles"]
    (copy / "model.engine").write_bytes(b"")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match=r"manifest\.json: says nothing of an engine, or is damaged"):
        EngineDetector(copy)


def test_an_engine_without_a_gpu_says_so(bundle: Path) -> None:
    with pytest.raises(
        ExportError, match="TensorRT needs an NVIDIA GPU, and PyTorch finds none here; take --backend onnxruntime"
    ):
        EngineDetector(bundle)


def facts(**changed: Any) -> EngineFacts:
    values: dict[str, Any] = {
        "sha256": "", "module": "tensorrt_rtx", "version": "1.0", "compute_capability": "9.0", "portable": False,
        "version_compatible": False, "profiles": (PROFILE,),
    }  # fmt: skip
    return EngineFacts(**{**values, **changed})


def test_an_engine_of_another_version_or_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None if name == "tensorrt" else object())
    monkeypatch.setattr(engines.importlib, "import_module", lambda name: SimpleNamespace(__version__="2.0"))
    with pytest.raises(
        ExportError, match=r"built with tensorrt_rtx 1\.0, but 2\.0 is installed, .* rebuild it here with"
    ):
        check_module(facts())
    check_module(facts(version_compatible=True))
    with pytest.raises(
        ExportError, match=r"built with tensorrt 10\.13, which is not installed: pip install tensorrt==10\.13"
    ):
        check_module(facts(module="tensorrt", version="10.13"))
    with pytest.raises(ExportError, match="built by an unknown module 'os'"):
        check_module(facts(module="os"))
    monkeypatch.setattr(engines.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(engines.torch.cuda, "get_device_capability", lambda gpu: (8, 6))
    monkeypatch.setattr(engines.torch.cuda, "get_device_name", lambda gpu: "a small GPU")
    with pytest.raises(ExportError, match=r"built for a GPU of compute capability 9\.0, a small GPU has 8\.6; rebuild"):
        choose_gpu("cuda", facts())
    assert choose_gpu("auto", facts(portable=True)).type == "cuda"
    with pytest.raises(ExportError, match="device: got 'cpu' for an engine, expected cuda"):
        choose_gpu("cpu", facts())


def test_an_engine_goes_into_a_bundle_that_is_whole(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"manifest\.json: no such file; `siamdetr export MODEL -o .*` makes a bundle"
    ):
        add_engine(tmp_path, profiles=[PROFILE], options=RTX)
    shutil.copytree(bundle, tmp_path / "copy")
    (tmp_path / "copy" / "model.onnx").write_bytes(b"another")
    with pytest.raises(ExportError, match=r"model\.onnx: not the file that manifest\.json vouches for"):
        add_engine(tmp_path / "copy", profiles=[PROFILE], options=RTX)


def test_a_build_that_fails_leaves_the_bundle_as_it_was(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle, tmp_path / "copy")
    before = {path.name: digest_file(path) for path in (tmp_path / "copy").iterdir()}

    def fail(*_: Any, **__: Any) -> Any:
        raise ExportError("no engine today")

    monkeypatch.setattr(adding, "build_engine", fail)
    with pytest.raises(ExportError, match="no engine today"):
        add_engine(tmp_path / "copy", profiles=[PROFILE])
    assert {path.name: digest_file(path) for path in (tmp_path / "copy").iterdir()} == before


def test_an_engine_that_differs_is_rejected(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the ONNX file of another model in place of the engine: the gate needs no GPU to reject it."""
    shutil.copytree(bundle, tmp_path / "copy")
    other = export_variant("vanilla", tmp_path / "other").folder
    monkeypatch.setattr(adding.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(adding, "EngineDetector", lambda folder: siamdetr.load(other))
    monkeypatch.setattr(adding, "_entry", lambda *_: {"profiles": []})
    with pytest.raises(
        ExportError, match=r"model\.engine\.rejected: differs from PyTorch at batch 1 .* must not be used"
    ):
        add_engine(tmp_path / "copy", profiles=[PROFILE], options=RTX)
    names = {path.name for path in (tmp_path / "copy").iterdir()}
    assert {"model.engine", "model.engine.rejected"} <= names
    assert digest_file(tmp_path / "copy" / "model.engine") == digest_file(bundle / "model.engine")


def test_threads_take_turns_with_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = 0, 0

    def run(self: EngineDetector, index: int, feed: dict[str, Any], number: int) -> dict[str, Any]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        inside -= 1
        return {"scores": np.zeros((number, 2)), "labels": np.zeros((number, 2)), "boxes": np.zeros((number, 2, 4))}

    detector = EngineDetector.__new__(EngineDetector)  # opening an engine needs a GPU
    detector.engine_facts, detector._inputs, detector._turn = facts(), ("images",), threading.Lock()
    monkeypatch.setattr(EngineDetector, "_run", run)
    profile = detector.engine_facts.profiles[0]
    sizes = np.array([[profile.height[0], profile.width[0]]] * 3, np.int64)
    batch = Prepared(np.zeros((3, 3, profile.height[0], profile.width[0]), np.uint8), None, sizes, sizes)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(detector.predict_batch, [batch] * 8))
    assert [len(one.scores) for one in found] == [3] * 8
    assert most == 1
