"""Models that pad their images, over the Open Inference Protocol with `valid_sizes`."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from helpers.serving import SETTINGS, StubModel, client, encoded, eventually, form, in_flight, listening, pixels
from helpers.tiny_models import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from siamdetr.export import infer
from siamdetr.export.client import Client
from siamdetr.export.runtime import OnnxDetector
from siamdetr.images.preprocessing import Prepared, PreprocessingSpec, preprocess
from siamdetr.inference.predictor import Predictor, ScoredBoxes

INFER = "/v2/models/siamdetr/infer"
LENGTH = "Inference-Header-Content-Length"
SPEC = PreprocessingSpec(mode="letterbox", size=(64, 96), max_size=None)
WIDE, TALL, FULL = pixels(40, 120), pixels(90, 50, seed=1), pixels(128, 192, seed=2)  # the last one needs no padding


@pytest.fixture(scope="module")
def server() -> Iterator[TestClient]:
    with client(StubModel(PreprocessingSpec(mode="letterbox", size=(4, 6)))) as opened:
        yield opened


def inputs_of(batch: Prepared) -> dict[str, np.ndarray]:
    return {"images": batch.images, "original_sizes": batch.original_sizes, "valid_sizes": batch.sizes}


def request(valid: list[int], shape: tuple[int, ...] = (1, 3, 4, 6)) -> dict[str, Any]:
    """A request of zeros, as JSON."""
    rows = shape[0]
    data = [0] * int(np.prod(shape))
    return {
        "inputs": [
            {"name": "images", "datatype": "UINT8", "shape": list(shape), "data": data},
            {"name": "original_sizes", "datatype": "INT64", "shape": [rows, 2], "data": [40, 30] * rows},
            {"name": "valid_sizes", "datatype": "INT64", "shape": [rows, len(valid) // rows], "data": valid},
        ]
    }


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    """Equal except for the last digits, which in ONNX Runtime depend on the batch size."""
    return np.array_equal(found["labels"], expected["labels"]) and all(
        np.allclose(found[name], expected[name], rtol=0, atol=tolerance)
        for name, tolerance in (("boxes", 0.01), ("scores", 1e-5))
    )


@pytest.mark.parametrize("runtime", ["onnxruntime", "pytorch"])
def test_the_client_finds_what_detect_finds_bit_for_bit(runtime: str, letterbox_bundle: Path, tmp_path: Path) -> None:
    """The exported model also equals `infer.py`.

    No training letterboxes, but a model in memory may.
    """
    bundle = runtime == "onnxruntime"
    model: Predictor = OnnxDetector(letterbox_bundle, threads=1) if bundle else tiny_model(spec=SPEC)
    exif = Image.Exif()
    exif[274] = 6
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for file, picture in zip(files, (WIDE, TALL, FULL, pixels(30, 70)), strict=True):
        Image.fromarray(picture).save(file, **({"exif": exif} if file == files[-1] else {}))
    with listening(model) as url, client(model) as server:
        over_the_wire = Client(url)
        assert over_the_wire.preprocessing["mode"] == "letterbox"
        for file in files:
            body, headers = form(file.read_bytes(), threshold=0.3)
            detected = server.post("/v1/detect", content=body, headers=headers).json()["images"][0]["detections"]
            assert len(detected) > 0
            assert over_the_wire.predict(file, 0.3) == detected
            if bundle:
                assert infer.Detector(letterbox_bundle / "model.onnx").predict(file, 0.3) == detected


def test_pictures_of_several_shapes_in_one_batch_are_found_as_one_by_one(letterbox_bundle: Path) -> None:
    model = OnnxDetector(letterbox_bundle, threads=1)
    with listening(model) as url:
        wire = Client(url)
        together = wire.infer(inputs_of(preprocess([WIDE, TALL, FULL], model.preprocessing)))
        for row, picture in enumerate((WIDE, TALL, FULL)):
            alone = wire.infer(inputs_of(preprocess([picture], model.preprocessing)))
            assert same({name: values[row : row + 1] for name, values in together.items()}, alone)


class Held(OnnxDetector):
    """A model that waits for `gate`, and remembers the sizes of its batches."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, threads=1)
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []

    def predict_batch(self, batch: Prepared) -> ScoredBoxes:
        self.batches.append(len(batch))
        assert self.gate.wait(20)
        return super().predict_batch(batch)


def test_requests_are_joined_whether_padded_or_not(letterbox_bundle: Path) -> None:
    model = Held(letterbox_bundle)
    with listening(model, replace(SETTINGS, max_batch=3)) as url, ThreadPoolExecutor(4) as threads:
        wire = Client(url)
        model.batches.clear()
        model.gate.clear()
        asked = [inputs_of(preprocess([picture], SPEC)) for picture in (WIDE, TALL, FULL)]
        first = threads.submit(wire.infer, asked[0])  # keeps the only runner busy
        eventually(lambda: model.batches == [1])
        answers = [threads.submit(wire.infer, one) for one in asked]
        eventually(lambda: in_flight(url) == 4)
        model.gate.set()
        together, alone = [one.result() for one in answers], [first.result(), *map(wire.infer, asked[1:])]
    assert model.batches == [1, 3, 1, 1]
    assert all(map(same, together, alone))


def test_what_lies_in_the_padding_changes_nothing(letterbox_bundle: Path) -> None:
    batch = preprocess([TALL], SPEC)
    assert batch.padding is not None
    noisy = np.where(batch.padding[:, None], pixels(64, 96, seed=5).transpose(2, 0, 1)[None], batch.images)
    for model in (OnnxDetector(letterbox_bundle, threads=1), tiny_model(spec=SPEC)):
        with listening(model) as url:
            clean, dirty = (
                Client(url).infer({**inputs_of(batch), "images": images}) for images in (batch.images, noisy)
            )
            assert all(np.array_equal(clean[name], dirty[name]) for name in clean)


def test_the_server_describes_what_a_padding_model_takes(server: TestClient) -> None:
    described = server.get("/v2/models/siamdetr").json()["inputs"]
    assert [(one["name"], one["datatype"], one["shape"]) for one in described] == [
        ("images", "UINT8", [-1, 3, 4, 6]),
        ("original_sizes", "INT64", [-1, 2]),
        ("valid_sizes", "INT64", [-1, 2]),
    ]
    body = server.get("/openapi.json").json()["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"]
    content = body["content"]["application/json"]
    properties = content["schema"]["properties"]["inputs"]["items"]["properties"]
    assert properties["name"]["enum"] == ["images", "original_sizes", "valid_sizes"]
    assert properties["datatype"]["enum"] == ["INT64", "UINT8"]
    head = json.dumps(content["example"]).encode()
    answer = server.post(INFER, content=head + bytes(3 * 4 * 6), headers={LENGTH: str(len(head))})
    assert answer.status_code == 200


def without(name: str) -> dict[str, Any]:
    body = request([3, 6])
    return {"inputs": [one for one in body["inputs"] if one["name"] != name]}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (without("valid_sizes"), "inputs: valid_sizes missing"),
        (request([0, 6]), "valid_sizes: row 0 got 0 × 6, expected height × width of the part of the image that is picture, 1 × 1 to 4 × 6"),
        (request([4, 6, 4, 7], (2, 3, 4, 6)), "valid_sizes: row 1 got 4 × 7"),
        (request([5, 6]), "valid_sizes: row 0 got 5 × 6"),
        (request([3, 6, 1]), "valid_sizes [1, 3], expected images [N, 3, 4, 6], original_sizes [N, 2], valid_sizes [N, 2]; smaller"),
        (request([3, 6], (1, 3, 3, 6)), "shapes: got images [1, 3, 3, 6]"),
        (request([3, 6], (1, 3, 4, 7)), "valid_sizes [N, 2]; smaller pictures are padded at the right and below"),
    ],
)  # fmt: skip
def test_a_request_that_does_not_fit_is_explained(server: TestClient, body: Any, text: str) -> None:
    answer = server.post(INFER, json=body)
    assert answer.status_code == 400
    assert text in answer.json()["error"]
    assert server.post(INFER, json=request([3, 6])).status_code == 200


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 6), st.integers(-1, 8)), min_size=1, max_size=3))
def test_of_all_sizes_those_within_the_image_are_taken(server: TestClient, sizes: list[tuple[int, int]]) -> None:
    answer = server.post(INFER, json=request([n for size in sizes for n in size], (len(sizes), 3, 4, 6)))
    within = all(1 <= height <= 4 and 1 <= width <= 6 for height, width in sizes)
    assert answer.status_code == (200 if within else 400)


def test_a_model_that_does_not_pad_takes_no_valid_sizes() -> None:
    with client(StubModel()) as server:
        answer = server.post(INFER, json=request([3, 6]))
        assert answer.status_code == 400
        assert "inputs: got 'valid_sizes', expected each of images, original_sizes once" in answer.json()["error"]
        assert server.post("/v1/detect", files={"images": encoded(WIDE)}).status_code == 200
