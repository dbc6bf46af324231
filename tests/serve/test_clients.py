"""Requests of Open Inference clients and of browsers.

Versions, health, HEAD, CORS, a proxy's prefix, odd bodies.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from helpers.serving import SETTINGS, StubModel, client, encoded, form, listening, pixels

from siamdetr.errors import ServeError
from siamdetr.export import client as client_file
from siamdetr.inference.predictor import ScoredBoxes
from siamdetr.serve.log_lines import OneLine
from siamdetr.serve.server import create_app

MODEL = "/v2/models/siamdetr"
TOKEN = "0123456789abcdef"
PAGE = "https://app.example"


@pytest.fixture(scope="module")
def server() -> Iterator[TestClient]:
    with client(StubModel()) as opened:
        yield opened


def request(**changes: Any) -> dict[str, Any]:
    images = {"name": "images", "datatype": "UINT8", "shape": [1, 3, 2, 2], "data": list(range(12))}
    sizes = {"name": "original_sizes", "datatype": "INT64", "shape": [1, 2], "data": [40, 30]}
    return {"inputs": [images, sizes], **changes}


@pytest.mark.parametrize("place", ["", "/config", "/ready"])
def test_version_1_is_the_model(server: TestClient, place: str) -> None:
    assert server.get(f"{MODEL}{place}").json()
    assert server.get(f"{MODEL}/versions/1{place}").json() == server.get(f"{MODEL}{place}").json()
    other = server.get(f"{MODEL}/versions/2{place}")
    assert (other.status_code, other.json()["error"]) == (404, "version: got '2', this server has '1' of 'siamdetr'")


def test_a_version_infers_as_the_model_does(server: TestClient) -> None:
    answers = [server.post(f"{MODEL}{place}/infer", json=request()).json() for place in ("", "/versions/1")]
    assert answers[0] == answers[1]
    assert answers[0]["model_version"] == "1"
    assert server.post(f"{MODEL}/versions/0/infer", json=request()).status_code == 404
    assert server.post("/v2/models/other/versions/1/infer", json=request()).status_code == 404


def test_health_is_told_in_the_body_too(server: TestClient) -> None:
    assert server.get("/v2/health/live").json() == {"live": True}
    assert server.get("/v2/health/ready").json() == {"ready": True}
    assert server.get(f"{MODEL}/ready").json() == {"name": "siamdetr", "ready": True}


def test_a_model_that_warms_up_says_that_it_is_not_ready() -> None:
    model = StubModel()
    model.gate.clear()
    with TestClient(create_app(model, SETTINGS)) as server:
        for place in ("/v2/health/ready", f"{MODEL}/ready"):
            answer = server.get(place)
            assert (answer.status_code, answer.json()["ready"]) == (503, False)
            assert "is warming up" in answer.json()["error"]
        model.gate.set()


@pytest.mark.parametrize(
    "place", ["/v2/health/live", "/v2/health/ready", "/metrics", "/v2", MODEL, f"{MODEL}/versions/1"]
)
def test_head_is_answered_as_get_without_a_body(server: TestClient, place: str) -> None:
    head, got = server.head(place), server.get(place)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert server.head("/v2/models/other").status_code == 404


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"parameters": {"classification": 3}},
            "body: parameters got 'classification', which this server does not know",
        ),
        ({"parameters": {"binary_data_output": 1}}, "binary_data_output: got '1', expected true or false"),
        (
            {"outputs": [{"name": "boxes", "parameters": {"classification": 3}}]},
            "boxes: parameters got 'classification', which this server does not know; it takes 'binary_data'",
        ),
        (
            {"outputs": [{"name": "boxes", "parameters": {"shared_memory_region": "x"}}]},
            "boxes: parameters got 'shared_memory_region'",
        ),
    ],
)
def test_a_parameter_that_nobody_reads_is_refused(server: TestClient, changes: dict[str, Any], text: str) -> None:
    answer = server.post(f"{MODEL}/infer", json=request(**changes))
    assert answer.status_code == 400
    assert text in answer.json()["error"]


def test_a_query_is_refused(server: TestClient) -> None:
    answer = server.post(f"{MODEL}/infer?threshold=0.3", json=request())
    assert (answer.status_code, answer.json()["error"][:28]) == (400, "query: got ['threshold'], ex")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP"])
def test_compressed_bodies_are_refused_in_words(server: TestClient, encoding: str) -> None:
    body, headers = form(encoded(pixels()))
    for place, content, kind in (
        (f"{MODEL}/infer", gzip.compress(json.dumps(request()).encode()), {"Content-Type": "application/json"}),
        ("/v1/detect", gzip.compress(body), headers),
    ):
        answer = server.post(place, content=content, headers={**kind, "Content-Encoding": encoding})
        expected = f"content-encoding: got '{encoding.lower()}', expected none; send the body uncompressed"
        assert (answer.status_code, answer.json()) == (415, {"error": expected})


def preflight(server: TestClient, origin: str) -> Any:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return server.options("/v1/detect", headers=headers)


def test_named_pages_may_ask_and_no_others() -> None:
    settings = dataclasses.replace(SETTINGS, token=TOKEN, cors_origins=(PAGE,))
    with client(StubModel(), settings) as server:
        asked = preflight(server, PAGE)  # without the token, as a browser does
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, PAGE)
        assert "authorization" in asked.headers["access-control-allow-headers"].lower()
        assert "access-control-allow-origin" not in preflight(server, "https://evil.example").headers
        body, headers = form(encoded(pixels()))
        found = server.post("/v1/detect", content=body, headers={**headers, "Origin": PAGE})
        assert (found.status_code, found.headers["access-control-allow-origin"]) == (401, PAGE)  # the page reads why
        headers = {**headers, "Origin": PAGE, "Authorization": f"Bearer {TOKEN}"}
        assert server.post("/v1/detect", content=body, headers=headers).headers["access-control-allow-origin"] == PAGE


def test_without_the_option_no_page_may_ask(server: TestClient) -> None:
    assert "access-control-allow-origin" not in preflight(server, PAGE).headers
    assert "access-control-allow-origin" not in server.get("/v2", headers={"Origin": PAGE}).headers


@pytest.mark.parametrize(
    "origin", ["app.example", "https://app.example/", "https://a b", "null", "https://*.example", ""]
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ServeError, match=r"--cors-origin: got '.*', expected scheme://host"):
        dataclasses.replace(SETTINGS, cors_origins=(origin,))


@pytest.mark.parametrize("path", ["detector", "/detector/", "//x", "/a?b", "/"])
def test_what_is_no_prefix_is_refused(path: str) -> None:
    with pytest.raises(ServeError, match=r"--root-path: got '.*', expected a path such as /detector"):
        dataclasses.replace(SETTINGS, root_path=path)


def test_a_proxy_may_take_its_prefix_off_or_leave_it() -> None:
    settings = dataclasses.replace(SETTINGS, token=TOKEN, root_path="/detector")
    with client(StubModel(), settings) as server:
        body, headers = form(encoded(pixels()))
        headers["Authorization"] = f"Bearer {TOKEN}"
        for prefix in ("", "/detector"):
            assert server.get(f"{prefix}/v2/health/ready").status_code == 200
            assert server.get(f"{prefix}/metrics").status_code == 401
            assert server.post(f"{prefix}/v1/detect", content=body, headers=headers).status_code == 200
            wrong = server.post(f"{prefix}/v1/detect", content=b"{}", headers={**headers, "Content-Type": "text/plain"})
            assert wrong.status_code == 415
        described = server.get("/openapi.json", headers=headers).json()
        assert described["servers"] == [{"url": "/detector"}]


class Broken(StubModel):
    """A model whose output is NaN for every picture that is not black."""

    def __init__(self, value: float = float("nan"), *, where: str = "scores") -> None:
        super().__init__()
        self.value, self.where = value, where
        self.broken = False

    def predict_batch(self, batch: Any) -> ScoredBoxes:
        found = super().predict_batch(batch)
        if self.broken:
            getattr(found, self.where).reshape(len(batch), -1)[:, 0] = self.value
        return found


@pytest.mark.parametrize("where", ["scores", "boxes"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_answer_that_is_no_number_is_an_error_in_every_form(value: float, where: str) -> None:
    model = Broken(value, where=where)
    with listening(model) as url, client(model) as server:
        model.broken = True
        body, headers = form(encoded(pixels()), threshold=0)
        binary = request(parameters={"binary_data_output": True})
        for answer in (
            server.post("/v1/detect", content=body, headers=headers),
            server.post(f"{MODEL}/infer", json=request()),
            server.post(f"{MODEL}/infer", json=binary),
        ):
            assert answer.status_code == 500
            assert f"{where} that are not finite numbers" in answer.json()["error"]
        with pytest.raises(RuntimeError, match=r"500 Internal Server Error: .*not finite numbers"):
            client_file.Client(url).predict(pixels(), 0.0)
        model.broken = False
        assert server.post("/v1/detect", content=body, headers=headers).status_code == 200


def test_a_model_that_answers_no_numbers_is_never_ready(caplog: pytest.LogCaptureFixture) -> None:
    model = Broken()
    model.broken = True
    with caplog.at_level(logging.ERROR), TestClient(create_app(model, SETTINGS)) as server:
        while "Never ready" not in caplog.text:
            assert server.get("/v2/health/ready").status_code == 503
    assert "not finite numbers" in caplog.text


def test_a_broken_picture_of_a_batch_does_not_take_the_others_along() -> None:
    class OneOfTwo(StubModel):
        def predict_batch(self, batch: Any) -> ScoredBoxes:
            found = super().predict_batch(batch)
            found.scores[batch.images.reshape(len(batch), -1)[:, 0] == 255] = np.nan
            return found

    settings = dataclasses.replace(SETTINGS, max_batch=2, max_delay=0.2)
    white, black = (encoded(np.full((60, 80, 3), level, np.uint8)) for level in (255, 0))
    with client(OneOfTwo(), settings) as server:
        for image, status in ((white, 500), (black, 200)):
            body, headers = form(image)
            assert server.post("/v1/detect", content=body, headers=headers).status_code == status


def test_nobody_s_threshold_is_the_model_s() -> None:
    model = StubModel()
    model.threshold = 0.95  # above the stub's .9
    with listening(model) as url, client(model) as server:
        body, headers = form(encoded(pixels()))
        assert server.post("/v1/detect", content=body, headers=headers).json()["images"][0]["detections"] == []
        body, headers = form(encoded(pixels()), threshold=0.5)
        assert len(server.post("/v1/detect", content=body, headers=headers).json()["images"][0]["detections"]) == 1
        card = json.loads(server.get(f"{MODEL}/config").json()["parameters"]["siamdetr"]["string_value"])
        assert card["threshold"] == 0.95
        described = server.get("/openapi.json").json()["paths"]["/v1/detect"]["post"]["requestBody"]["content"]
        assert described["multipart/form-data"]["schema"]["properties"]["threshold"]["default"] == 0.95
        asked = client_file.Client(url)
        assert asked.threshold == 0.95
        assert asked.predict(pixels()) == []
        assert len(asked.predict(pixels(), 0.5)) == 1


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with listening(StubModel()) as url:
        assert len(client_file.Client(url).predict(pixels(), 0.5)) == 1
        assert client_file.Client(url.replace("127.0.0.1", "localhost")).class_names == ["cat", "dog"]
    assert not client_file.is_loopback("http://detector.example:8000")


def test_an_event_is_one_line_with_its_time() -> None:
    try:
        raise ValueError("no\nsuch")
    except ValueError:
        record = logging.LogRecord(
            "siamdetr.serve", logging.ERROR, "f", 1, "GET %s", ("/a\nb\x1b[31m\u2028",), sys.exc_info()
        )
    record.created = 0
    line = OneLine().format(record)
    assert line.startswith("1970-01-01T00:00:00Z ERROR siamdetr.serve: GET /a\\nb\\x1b[31m\\u2028\\nTraceback")
    assert len(line.splitlines()) == 1
