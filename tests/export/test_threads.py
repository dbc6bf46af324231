"""Runtimes shared by several threads, and their memory when every picture has another size."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.exported import export_variant

import siamdetr
from siamdetr.images.preprocessing import Prepared


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("threads")
    export_variant("vanilla", folder)
    return folder


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_six_threads_get_their_own_answers(bundle: Path, backend: siamdetr.api.Backend) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    model = siamdetr.load(bundle, backend=backend, threads=1)
    pictures = [np.full((60 + i, 80, 3), 40 * i, np.uint8) for i in range(6)]
    expected = [model.predict(picture, 0.0) for picture in pictures]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda picture: model.predict(picture, 0.0), pictures * 4))
    for one, alone in zip(found, expected * 4, strict=True):
        assert np.allclose(one.xyxy, alone.xyxy, atol=1e-3)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_memory_does_not_rise_with_every_new_size(bundle: Path, backend: siamdetr.api.Backend) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    model = siamdetr.load(bundle, backend=backend, threads=1)

    def ask(height: int, width: int) -> None:
        sizes = np.array([[height, width]], np.int64)
        model.predict_batch(Prepared(np.zeros((1, 3, height, width), np.uint8), None, sizes, sizes))

    def held() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    ask(139, 260)  # the largest first: a larger picture may take more
    random = np.random.default_rng(0)
    sizes = [(int(height), 141 + i % 120) for i, height in enumerate(random.integers(100, 140, 240))]
    for height, width in sizes[:120]:  # the runtime's pools of memory fill up
        ask(height, width)
    before = held()
    for height, width in sizes[120:]:
        ask(height, width)
    assert held() - before < 25  # MiB
