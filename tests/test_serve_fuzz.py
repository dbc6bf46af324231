"""Machines that think of what we did not: schemathesis over the OpenAPI document, hypothesis over image files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import SETTINGS, StubModel, client, encoded, form, pixels
from schemathesis import openapi
from siamdetr.preprocessing import PreprocessingSpec
from siamdetr.serve.form import parse_form
from siamdetr.serve.image_gate import prepare
from siamdetr.serve.refusals import Refused
from siamdetr.serve.settings import Limits

SPEC = PreprocessingSpec.from_size(32)
KINDS = ("PNG", "JPEG", "WEBP", "BMP")
SEEDS = [encoded(pixels(24, 31, seed=i), kind) for i, kind in enumerate(KINDS)]
"""Valid files, of which the fuzzer makes damaged ones."""


@pytest.fixture(scope="module")
def server() -> Iterator[TestClient]:
    with client(StubModel()) as opened:
        yield opened


def test_every_operation_keeps_to_its_description(server: TestClient) -> None:
    schema = openapi.from_dict(server.get("/openapi.json").json())
    openapi.media_type("image/png", st.sampled_from(SEEDS))
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/v1/detect", "/v2/models/{name}/infer", "/metrics"}


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid image file with bytes changed, cut out, doubled or appended."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(("set", "cut", "insert", "end"))):
            case "set":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=4))
            case "cut":
                del data[at : at + draw(st.integers(1, 40))]
            case "insert":
                data[at:at] = draw(st.binary(max_size=40))
            case _:
                del data[at:]
    return bytes(data)


@settings(max_examples=300, deadline=None)
@given(st.one_of(damaged(), st.binary(max_size=200)))
def test_whatever_the_bytes_an_image_is_prepared_or_refused(data: bytes) -> None:
    try:
        sample, (height, width) = prepare(data, SPEC, Limits(), name="image")
    except Refused as error:
        assert error.status_code in (413, 415, 422)
        assert str(error.detail).startswith("image: ")
    else:
        assert sample.dtype == "uint8"
        assert height * width <= Limits().max_pixels


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.text(max_size=40))
def test_whatever_the_bytes_a_form_is_parsed_or_refused(data: bytes, tail: str) -> None:
    body, headers = form(b"a", threshold=1)
    for damaged_body in (data, body + data, data + body, body[:-20] + data + body[-20:]):
        for content_type in (headers["Content-Type"], f"multipart/form-data; boundary={tail}"):
            try:
                parse_form(damaged_body, content_type, max_files=4)
            except Refused as error:
                assert error.status_code in (400, 413, 422)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damaged(), st.one_of(st.none(), st.floats(), st.text(max_size=8)))
def test_no_image_and_no_threshold_bring_a_server_down(server: TestClient, data: bytes, threshold: Any) -> None:
    body, headers = form(data, **({} if threshold is None else {"threshold": threshold}))
    answer = server.post("/v1/detect", content=body, headers=headers)
    assert answer.status_code in (200, 400, 413, 415, 422)
    assert answer.json().keys() in ({"error"}, {"model", "images"})
