"""The Open Inference Protocol: tensors as JSON and as bytes, the client of Triton, and refusals."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from helpers.serving import SETTINGS, StubModel, client, listening, pixels
from PIL import Image

from siamdetr.export import client as client_file
from siamdetr.export import infer
from siamdetr.export.runtime import OnnxDetector
from siamdetr.images.preprocessing import preprocess

INFER = "/v2/models/siamdetr/infer"
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def server() -> Iterator[TestClient]:
    with client(StubModel()) as opened:
        yield opened


def request(**changes: Any) -> dict[str, Any]:
    """A request of two rows, as JSON."""
    images = {"name": "images", "datatype": "UINT8", "shape": [2, 3, 2, 2], "data": list(range(24))}
    sizes = {"name": "original_sizes", "datatype": "INT64", "shape": [2, 2], "data": [40, 30, 40, 30]}
    return {"id": "7", "inputs": [{**images, **changes}, sizes]}


def test_the_client_finds_what_the_model_finds_bit_for_bit(tiny_bundle: Path, tmp_path: Path) -> None:
    model, reference = OnnxDetector(tiny_bundle, threads=1), infer.Detector(tiny_bundle / "model.onnx")
    pictures: list[Any] = [Image.fromarray(pixels(60, 80)), pixels(90, 50, seed=1), tmp_path / "turned.jpg"]
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels(70, 40)).save(pictures[-1], exif=exif)
    with listening(model) as url:
        found = client_file.Client(url)
        assert found.class_names == list(model.class_names)
        for picture in pictures:
            expected = reference.predict(picture, 0.3)
            assert len(expected) > 0
            assert found.predict(picture, 0.3) == expected
        script = [sys.executable, "-c", "import sys; sys.modules.update(torch=None, siamdetr=None, onnxruntime=None); "
                  "sys.argv = sys.argv[1:]; import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"]  # fmt: skip
        command = [*script, client_file.__file__, str(pictures[-1]), "--url", url, "--threshold", "0.3"]
        alone = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
        assert json.loads(alone.stdout)[0]["detections"] == reference.predict(pictures[-1], 0.3)
        with pytest.raises(RuntimeError, match=r"404 Not Found: .*got 'other', this server has 'siamdetr'"):
            client_file.Client(url, "other")
    with pytest.raises(ValueError, match="url: got 'file:///etc', expected http"):
        client_file.Client("file:///etc")


def test_the_client_prepares_pictures_with_the_code_of_infer_py() -> None:
    for name in ("load_image", "resize", "pad"):
        assert inspect.getsource(getattr(client_file, name)) == inspect.getsource(getattr(infer, name))


def test_json_and_bytes_give_the_same_numbers(tiny_bundle: Path) -> None:
    model = OnnxDetector(tiny_bundle, threads=1)
    batch = preprocess([pixels(60, 80), pixels(60, 80, seed=1)], model.preprocessing)
    expected = model.predict_batch(batch)
    inputs = [
        {"name": "images", "datatype": "UINT8", "shape": list(batch.images.shape), "data": batch.images.tolist()},
        {"name": "original_sizes", "datatype": "INT64", "shape": [2, 2], "data": batch.original_sizes.tolist()},
    ]
    with client(model) as server:
        plain = server.post(INFER, json={"inputs": inputs, "id": "a"})
        assert plain.status_code == 200
        assert plain.json()["id"] == "a"
        outputs = {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in plain.json()["outputs"]}
        assert np.array_equal(outputs["boxes"].astype(np.float32), expected.boxes)
        assert np.array_equal(outputs["labels"], expected.labels)

        raw = batch.images.tobytes()
        first = {**inputs[0], "parameters": {"binary_data_size": len(raw)}}
        asked = [{"name": "scores", "parameters": {"binary_data": True}}, {"name": "labels"}]
        head = json.dumps({"inputs": [first, inputs[1]], "outputs": asked}).encode()
        answer = server.post(INFER, content=head + raw, headers={LENGTH: str(len(head))})
        length = int(answer.headers[LENGTH])
        scores, labels = json.loads(answer.content[:length])["outputs"]
        assert scores["parameters"]["binary_data_size"] == len(answer.content) - length
        assert np.array_equal(np.frombuffer(answer.content[length:], "<f4"), expected.scores.reshape(-1))
        assert labels["data"] == expected.labels.reshape(-1).tolist()


def test_the_server_and_its_model_say_what_they_are(server: TestClient) -> None:
    assert server.get("/v2").json()["extensions"] == ["binary_tensor_data", "model_configuration"]
    model = server.get("/v2/models/siamdetr").json()
    assert [one["shape"] for one in model["inputs"]] == [[-1, 3, -1, -1], [-1, 2]]
    assert [one["name"] for one in model["outputs"]] == ["boxes", "scores", "labels"]
    assert server.get("/v2/models/siamdetr/ready").status_code == 200
    assert server.get("/v2/models/other").json() == {"error": "model: got 'other', this server has 'siamdetr'"}


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"inputs": 3}, 400, "inputs: got int, expected a list of objects"),
        ({}, 400, "inputs: got NoneType"),
        ([], 400, "body: got list, expected an object"),
        ({"inputs": []}, 400, "inputs: images, original_sizes missing"),
        ({"inputs": [{"name": "x"}]}, 400, "got 'x', expected each of images, original_sizes once"),
        (request(datatype="FP32"), 400, "images: datatype got 'FP32', expected UINT8"),
        (request(shape=[2, 3, -2, 2]), 400, "expected a list of 1 to 8 positive whole numbers"),
        (request(shape=[], data=[0]), 400, "images: shape got [], expected a list of 1 to 8"),
        (request(shape=[2, 3, 3, 2]), 400, "data got 24 values, expected 36 whole numbers"),
        (request(shape=[2**30] * 8), 400, "data got 24 values"),
        (request(data=[256] * 24), 400, "data reaches from 256 to 256, expected 0 to 255"),
        (request(data=[0.5] * 24), 400, "expected 24 whole numbers"),
        (request(data=[[1], 2]), 400, "expected 24 whole numbers"),
        (request(data=[10**30] * 24), 400, "expected 24 whole numbers"),
        (request(shape=[24]), 400, "shapes: got images [24], original_sizes [2, 2], expected images [N, 3, any, any], original_sizes [N, 2]"),
        (request(shape=[1, 3, 4, 2]), 400, "shapes: got images [1, 3, 4, 2]"),
        (request(shape=[2, 3, 1, 1000], data=[0] * 6000), 413, "expected as preprocessed, at most 32 × 53"),
        (request(parameters=4), 400, "images: parameters got int"),
        (request(parameters={"binary_data_size": 24}), 400, "expected 24 bytes behind the JSON"),
        ({**request(), "outputs": [{"name": "masks"}]}, 400, "outputs: got 'masks', expected some of boxes"),
        ({**request(), "id": 5}, 400, "id: got int, expected text"),
    ],
)  # fmt: skip
def test_a_request_that_does_not_fit_is_explained(server: TestClient, body: Any, status: int, text: str) -> None:
    answer = server.post(INFER, json=body)
    assert answer.status_code == status
    assert text in answer.json()["error"]
    assert server.post(INFER, json=request()).status_code == 200


def test_bodies_that_are_no_requests_are_explained(server: TestClient) -> None:
    deep = b'{"inputs":' + b"[" * 200_000
    for body, headers, status, text in [
        (b"{", {}, 400, "not JSON"),
        (deep, {}, 400, "not JSON"),
        (b'{"inputs": NaN}', {}, 400, "got float"),
        (b"{}", {LENGTH: "99"}, 400, f"{LENGTH}: got '99'"),
        (b"{}", {LENGTH: "-1"}, 400, f"{LENGTH}: got '-1'"),
        (b"{}", {LENGTH: "0" * 5000}, 400, f"{LENGTH}: got '{'0' * 40}'"),
        (json.dumps(request()).encode() + b"more", {LENGTH: str(len(json.dumps(request())))}, 400, "4 bytes more"),
        (b"{}", {"Content-Type": "text/html"}, 415, "content-type: got 'text/html'"),
    ]:
        answer = server.post(INFER, content=body, headers=headers)
        assert (answer.status_code, text in answer.json()["error"]) == (status, True), answer.text


def test_text_that_utf_8_cannot_say_goes_back_as_it_came(server: TestClient) -> None:
    """JSON may escape half of a surrogate pair."""
    half = "\ud800 猫"
    answer = server.post(INFER, content=json.dumps({**request(), "id": half}).encode())
    assert (answer.status_code, answer.json()["id"]) == (200, half)
    refused = server.post(INFER, content=json.dumps(request(parameters={"binary_data_size": half})).encode())
    assert refused.status_code == 400
    assert refused.json() == {"error": f"images: binary_data_size got {half}, expected 24 bytes behind the JSON"}


def test_refusals_are_short_whatever_they_repeat(server: TestClient) -> None:
    answer = server.post(INFER, json={"inputs": [{"name": "z" * 100_000}]})
    assert (answer.status_code, len(answer.content) < 200) == (400, True)


def test_rows_are_bounded() -> None:
    limits = dataclasses.replace(SETTINGS.limits, max_images=1)
    with client(StubModel(), dataclasses.replace(SETTINGS, limits=limits)) as server:
        assert server.post(INFER, json=request()).json() == {"error": "images: got 2 rows, at most 1 are taken"}
