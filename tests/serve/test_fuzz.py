"""Generated requests and files: schemathesis over the OpenAPI document, hypothesis over images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from helpers.serving import StubModel, client, encoded, form, listening, pixels
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from schemathesis import openapi
from schemathesis.config._checks import NegativeDataRejectionConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance

from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.serve.image_gate import prepare
from siamdetr.serve.multipart_form import parse_form
from siamdetr.serve.refusals import Refused
from siamdetr.serve.settings import Limits

SPEC = PreprocessingSpec.from_size(32)
KINDS = ("PNG", "JPEG", "WEBP", "BMP")
SEEDS = [encoded(pixels(24, 31, seed=i), kind) for i, kind in enumerate(KINDS)]


@pytest.fixture(scope="module")
def server() -> Iterator[TestClient]:
    with client(StubModel()) as opened:
        yield opened


@pytest.fixture(
    scope="module", params=[SPEC, PreprocessingSpec(mode="letterbox", size=(2, 3))], ids=lambda spec: spec.mode
)
def description(request: pytest.FixtureRequest) -> Iterator[openapi.loaders.OpenApiSchema]:
    """The OpenAPI document of a server on a socket; half of its images are good ones."""
    openapi.media_type("image/png", st.one_of(st.sampled_from(SEEDS), st.binary(max_size=100)))
    with listening(StubModel(request.param)) as url:
        schema = openapi.from_url(f"{url}/openapi.json")
        # A wrong value may come in so many parts that their number is refused first.
        schema.config.checks.negative_data_rejection.expected_statuses = [
            *NegativeDataRejectionConfig().expected_statuses,
            "413",
        ]
        yield schema


def sayable(case: schemathesis.Case) -> bool:
    """Whether the fault that a case intends can be expressed in the request.

    A form cannot: it sends an empty list as no field, and a list of one as one field.
    """
    if case.media_type != "multipart/form-data" or not isinstance(case.body, dict):
        return True
    return not any(isinstance(value, list) and len(value) < 2 for name, value in case.body.items() if name != "images")


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_every_operation_keeps_to_its_description(
    description: openapi.loaders.OpenApiSchema, mode: schemathesis.GenerationMode
) -> None:
    operations = [operation.ok() for operation in description.get_all_operations()]
    for operation in operations:
        if mode is schemathesis.GenerationMode.NEGATIVE and operation.method != "post":
            continue  # nothing in it that could be wrong

        @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            assume(sayable(case))
            case.call_and_validate(excluded_checks=[positive_data_acceptance])  # half of the images are no images

        check()
    assert len(operations) == 9


def test_the_description_has_examples_and_every_address(server: TestClient) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    assert paths.keys() == {
        "/v1/detect", "/v2", "/v2/models/{name}", "/v2/models/{name}/config", "/v2/models/{name}/ready",
        "/v2/models/{name}/infer", "/v2/health/live", "/v2/health/ready", "/metrics",
    }  # fmt: skip
    answer = paths["/v1/detect"]["post"]["responses"]["200"]["content"]["application/json"]
    assert answer["example"]["images"][0]["detections"][0]["name"] == "cat"
    infer = paths["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert server.post("/v2/models/siamdetr/infer", json=infer).status_code == 200


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


def outcome(work: Callable[[], Any]) -> Any:
    """The result or the refusal of a call; any other exception is raised."""
    try:
        return work()
    except Refused as refused:
        return refused


@settings(max_examples=300, deadline=None)
@given(st.one_of(damaged(), st.binary(max_size=200)))
def test_whatever_the_bytes_an_image_is_prepared_or_refused(data: bytes) -> None:
    found = outcome(lambda: prepare(data, SPEC, Limits(), name="image"))
    if isinstance(found, Refused):
        assert found.status_code in (413, 415, 422)
        assert str(found.detail).startswith("image: ")
    else:
        sample, (height, width) = found
        assert sample.dtype == "uint8"
        assert height * width <= Limits().max_pixels


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.text(st.characters(max_codepoint=255), max_size=40))
def test_whatever_the_bytes_a_form_is_parsed_or_refused(data: bytes, tail: str) -> None:
    body, headers = form(b"a", threshold=1)
    for damaged_body in (data, body + data, data + body, body[:-20] + data + body[-20:]):
        for content_type in (headers["Content-Type"], f"multipart/form-data; boundary={tail}"):
            found = outcome(
                lambda body=damaged_body, kind=content_type: parse_form(body, kind, files_field="images", max_files=4)
            )
            assert not isinstance(found, Refused) or found.status_code in (400, 413, 422)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damaged(), st.one_of(st.none(), st.floats(), st.text(max_size=8)))
def test_no_image_and_no_threshold_bring_a_server_down(server: TestClient, data: bytes, threshold: Any) -> None:
    body, headers = form(data, **({} if threshold is None else {"threshold": threshold}))
    answer = server.post("/v1/detect", content=body, headers=headers)
    assert answer.status_code in (200, 400, 413, 415, 422)
    assert answer.json().keys() in ({"error"}, {"model", "images"})
