"""Every runtime has the same protocol, preprocessing and detections, and never changes silently."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import supervision as sv
from helpers.exported import NAMES, VARIANTS, export_variant, model_of, same_detections
from PIL import Image

import siamdetr
from siamdetr.api import Backend, load
from siamdetr.errors import ExportError
from siamdetr.export import infer, sessions
from siamdetr.export.gate.images import drawn_images
from siamdetr.export.options import ExportOptions
from siamdetr.export.runtime import OnnxDetector
from siamdetr.images.preprocessing import PreprocessingSpec, preprocess

LETTERBOX = ExportOptions(resize="letterbox", size=(96, 160), attention=True)  # traced by test_export as well


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_variant("conditional", tmp_path_factory.mktemp("backends")).folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of several shapes and kinds, as files."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = drawn_images(4, 90, 120)
    shapes = [(60, 80), (80, 60), (90, 120), (75, 51)]
    images = [Image.fromarray(p.transpose(1, 2, 0)[:h, :w]) for p, (h, w) in zip(pixels, shapes, strict=True)]
    turned = Image.Exif()
    turned[0x0112] = 6  # on its side
    images[0].save(folder / "0.png", exif=turned)
    images[1].convert("L").save(folder / "1.png")
    images[2].convert("RGBA").save(folder / "2.png")
    images[3].save(folder / "3.png")
    return sorted(folder.iterdir())


def listed(found: sv.Detections | list[sv.Detections]) -> list[sv.Detections]:
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "dn"])  # as dab once it is trained
def test_all_backends_find_the_same(name: str, backend: Backend, pictures: list[Path], tmp_path: Path) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    folder = export_variant(name, tmp_path).folder
    loaded = load(folder, backend=backend, threads=1)
    expected, found = listed(model_of(name).predict(pictures, 0.0)), listed(loaded.predict(pictures, 0.0))
    assert all(same_detections(a, b, box=0.05, score=2e-4) for a, b in zip(expected, found, strict=True))


def test_openvino_computes_in_float32_unless_the_graph_says_bfloat16(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    assert OnnxDetector(bundle, backend="openvino").runtime.endswith("CPU, f32")
    half = export_variant("conditional", tmp_path, ExportOptions(precision="bf16")).folder
    loaded = OnnxDetector(half, backend="openvino")
    image = drawn_images(1, 96, 128)[0].transpose(1, 2, 0)
    expected, found = listed(model_of("conditional").predict(image, 0.3)), listed(loaded.predict(image, 0.3))
    assert len(expected[0]) == pytest.approx(len(found[0]), abs=2)
    with pytest.raises(
        ExportError, match=r"cannot open it .*as all of bfloat16's on the CPU; --backend openvino and TensorRT"
    ):
        OnnxDetector(half)


@pytest.mark.parametrize(
    "spec",
    [
        PreprocessingSpec.from_size(96),
        PreprocessingSpec(size=96, max_size=110),
        PreprocessingSpec.from_size((64, 100)),
        PreprocessingSpec(mode="letterbox", size=(64, 100)),
    ],
    ids=lambda spec: f"{spec.mode}-{spec.size}-{spec.max_size}",
)
def test_preprocessing_is_the_same_bit_for_bit(spec: PreprocessingSpec, pictures: list[Path]) -> None:
    """Of the package, which every backend shares, and of the bundle's stand-alone script."""
    plain = json.loads(spec.model_dump_json())
    for picture in pictures:
        expected = preprocess([picture], spec)
        pixels = infer.resize(infer.load_image(picture), plain)
        assert np.array_equal(expected.images[0], infer.pad(pixels, plain).transpose(2, 0, 1))
        assert tuple(expected.sizes[0]) == pixels.shape[:2]


@pytest.mark.parametrize("options", [ExportOptions(), LETTERBOX], ids=["own", "letterbox"])
def test_infer_py_alone_finds_what_the_model_finds(
    options: ExportOptions, pictures: list[Path], tmp_path: Path
) -> None:
    """Runs the bundle's script in a process where neither torch nor siamdetr can be imported."""
    folder = export_variant("conditional", tmp_path, options).folder
    blocker = "import sys; sys.modules.update(torch=None, siamdetr=None); sys.argv = sys.argv[1:]; import runpy; "
    command = [sys.executable, "-c", blocker + "runpy.run_path(sys.argv[0], run_name='__main__')"]
    answer = subprocess.run(
        [*command, folder / "infer.py", *pictures, "--threshold", "0"], capture_output=True, text=True, check=True
    )
    assert_same(answer.stdout, folder, pictures)


def assert_same(answer: str, folder: Path, pictures: list[Path]) -> None:
    own = model_of("conditional")
    spec = OnnxDetector(folder).preprocessing
    model = siamdetr.SiamDETR.from_parts(own.detector, class_names=NAMES, preprocessing=spec)
    for entry, file, expected in zip(json.loads(answer), pictures, listed(model.predict(pictures, 0.0)), strict=True):
        assert entry["file"] == str(file)
        rows = entry["detections"]
        assert [NAMES[row["label"]] for row in rows] == [row["name"] for row in rows]
        found = sv.Detections(
            xyxy=np.array([row["box"] for row in rows]),
            confidence=np.array([row["score"] for row in rows]),
            class_id=np.array([row["label"] for row in rows]),
        )
        assert same_detections(expected, found)


def test_infer_py_runs_where_only_three_packages_are_installed(
    bundle: Path, pictures: list[Path], tmp_path: Path
) -> None:
    """A new environment of numpy, Pillow and ONNX Runtime, linked so that nothing is downloaded."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    for package in ("numpy", "pillow", runtime_package(), "flatbuffers", "protobuf", "packaging"):
        link(package, site)
    python = environment / "bin" / "python"
    missing = subprocess.run(
        [python, "-I", "-c", "import importlib.util as u; print([u.find_spec(n) for n in ('torch', 'siamdetr', 'onnx', 'cv2')])"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert missing.stdout.strip() == "[None, None, None, None]"
    answer = subprocess.run(
        [python, "-I", bundle / "infer.py", *pictures, "--threshold", "0"], capture_output=True, text=True, check=True
    )
    assert_same(answer.stdout, bundle, pictures)


def runtime_package() -> str:
    for name in ("onnxruntime-gpu", "onnxruntime"):
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        return name
    raise AssertionError("ONNX Runtime is not installed")


def link(package: str, site: Path) -> None:
    """Link the top level of an installed package into another environment."""
    distribution = metadata.distribution(package)
    for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
        target = Path(str(distribution.locate_file(top)))
        if target.exists() and not (site / top).exists():
            os.symlink(target, site / top)


def test_an_exported_model_predicts_in_a_process_without_torch(bundle: Path, pictures: list[Path]) -> None:
    """What `siamdetr.export.runtime` needs of the package imports no torch."""
    code = (
        "import sys; sys.modules.update(torch=None, torchvision=None)\n"
        "from siamdetr.export.runtime import OnnxDetector\n"
        f"print(len(OnnxDetector({str(bundle)!r}).predict({str(pictures[0])!r}, 0.3)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(answer.stdout) == len(listed(model_of("conditional").predict(pictures[0], 0.3))[0])


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to a process")
def test_a_signal_reaches_its_handler_after_openvino_sessions_have_ended(bundle: Path) -> None:
    """A core puts back the signal stack that it found; with two, that was of a core that had ended."""
    pytest.importorskip("openvino")
    program = """
import gc, os, signal, sys, time
from siamdetr.export.runtime import OnnxDetector
first, second = (OnnxDetector(sys.argv[1], backend="openvino") for _ in range(2))
del first
del second
gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.01)
"""
    done = subprocess.run([sys.executable, "-c", program, str(bundle)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_a_backend_that_does_not_run_such_a_file_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="backend 'pytorch' does not run such a file; take onnxruntime or openvino"):
        load(bundle, backend="pytorch")
    model_of("conditional").save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="backend 'openvino' does not run such a file; take pytorch"):
        load(tmp_path / "model.safetensors", backend="openvino")


def test_openvino_that_is_missing_or_on_a_gpu_is_explained(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sessions.importlib.util.find_spec("openvino") is not None:
        with pytest.raises(ExportError, match="device: got 'cuda' with OpenVINO, which runs on the CPU here"):
            OnnxDetector(bundle, backend="openvino", device="cuda")
    monkeypatch.setattr(sessions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"OpenVINO is not installed: pip install 'siamdetr\[openvino\]'"):
        OnnxDetector(bundle, backend="openvino")


def test_a_silent_fall_back_to_the_cpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = sessions.wanted_providers("cuda:1")
    assert wanted == [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"]
    with pytest.raises(
        ExportError, match=r"asked ONNX Runtime for CUDAExecutionProvider, got CPUExecutionProvider: it fell"
    ):
        sessions.check_providers(wanted, ("CPUExecutionProvider",), required=True)
    with pytest.raises(ExportError, match="device: got 'tpu', expected cpu, cuda"):
        sessions.wanted_providers("tpu")
    monkeypatch.setattr(sessions, "cuda_at_hand", lambda: False)
    assert sessions.wanted_providers("auto") == ["CPUExecutionProvider"]
