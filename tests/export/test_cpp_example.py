"""`examples/cpp` runs a bundle from its manifest alone, and finds the checkpoint's boxes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from helpers.paths import ROOT
from helpers.same_boxes import assert_same_boxes
from helpers.tiny_models import tiny_model
from PIL import Image

from siamdetr.images.preprocessing import PreprocessingSpec

HEADERS = ROOT / "build" / "cpp" / "usr" / "include" / "onnxruntime"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled example, with the ONNX Runtime of the Python environment."""
    if missing := [tool for tool in ("cmake", "g++") if shutil.which(tool) is None]:
        pytest.skip(f"{' and '.join(missing)} not installed: make cpp")
    if not HEADERS.is_dir():
        pytest.skip("ONNX Runtime's headers are not in build/cpp: make cpp")
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
    if library is None:
        pytest.skip("this platform's onnxruntime has no libonnxruntime.so")
    folder = tmp_path_factory.mktemp("cpp")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # the names the linker and the loader look for
        (folder / name).symlink_to(library)
    found = [f"-DONNXRUNTIME_INCLUDE={HEADERS}", f"-DONNXRUNTIME_LIBRARY={folder / 'libonnxruntime.so'}"]
    flags = "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"
    build = folder / "build"
    for command in (["-S", ROOT / "examples" / "cpp", "-B", build, flags, *found], ["--build", build]):
        done = subprocess.run(["cmake", *map(str, command)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "detect"


def detect(program: Path, bundle: Path, *pictures: Path) -> tuple[int, list[dict[str, Any]]]:
    """The exit code and the lines of the program."""
    environment = os.environ | {"OPENCV_LOG_LEVEL": "ERROR"}
    done = subprocess.run([program, bundle, *pictures], capture_output=True, text=True, env=environment, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """A PNG, a JPEG that its EXIF entry turns, a grey PNG of 12 bits in 16, and colours with transparency."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    colours = Image.fromarray(pixels).resize((131, 97), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    colours.save(tmp_path / "a.png")
    colours.save(tmp_path / "b.jpg", exif=exif)
    Image.fromarray(np.asarray(colours)[..., 0].astype(np.uint16) * 16 + 5).save(tmp_path / "c.png")
    Image.fromarray(np.dstack([np.asarray(colours), np.asarray(colours)[..., 1]])).save(tmp_path / "d.png")
    return sorted(tmp_path.glob("?.*"))


def with_threshold(bundle: Path, folder: Path, threshold: float) -> dict[str, Any]:
    """Copy a bundle into `folder` with another threshold in its manifest, which is returned."""
    shutil.copytree(bundle, folder)
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text()) | {"threshold": threshold}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return manifest


@pytest.mark.parametrize("bundle", ["tiny_bundle", "letterbox_bundle"])
def test_the_program_finds_the_checkpoint_s_boxes(
    program: Path, pictures: list[Path], tmp_path: Path, bundle: str, request: pytest.FixtureRequest
) -> None:
    manifest = with_threshold(request.getfixturevalue(bundle), tmp_path / "bundle", 0.0)
    code, lines = detect(program, tmp_path / "bundle", *pictures)
    assert (code, [line["file"] for line in lines]) == (0, [str(picture) for picture in pictures])
    model = tiny_model(spec=PreprocessingSpec.model_validate(manifest["preprocessing"]))
    for picture, line in zip(pictures, lines, strict=True):
        assert_same_boxes(line["detections"], model.predict(picture, 0.0), model.class_names)


def test_the_threshold_is_the_manifest_s_and_one_bad_picture_does_not_end_the_list(
    program: Path, pictures: list[Path], tmp_path: Path, tiny_bundle: Path
) -> None:
    scores = tiny_model().predict(pictures[0], 0.0).confidence
    assert scores is not None
    threshold = float(np.median(scores))
    with_threshold(tiny_bundle, tmp_path / "bundle", threshold)
    code, lines = detect(program, tmp_path / "bundle", tmp_path / "none.png", pictures[0])
    assert (code, lines[0]) == (1, {"file": str(tmp_path / "none.png"), "error": "no readable picture"})
    found = [one["score"] for one in lines[1]["detections"]]
    assert 0 < len(found) < len(scores)
    assert min(found) >= threshold
    assert detect(program, tmp_path, pictures[0]) == (1, [])
