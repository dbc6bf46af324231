"""Bad requests: each gets the right status, none gets a 500, and the next request works."""

from __future__ import annotations

import dataclasses
import http.client
import json
import socket
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from helpers.pictures import bomb as header_alone
from helpers.serving import SETTINGS, StubModel, client, encoded, form, listening, pixels
from PIL import Image

from siamdetr.errors import ServeError
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.serve.settings import Limits, ServeSettings, is_loopback

GOOD = encoded(pixels())
TOKEN = "a token of twenty ch"


@pytest.fixture(scope="module")
def server() -> Iterator[TestClient]:
    with client(StubModel()) as opened:
        yield opened


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Of a server on a socket, with short deadlines."""
    limits = dataclasses.replace(SETTINGS.limits, body_seconds=0.5, max_uploads=2)
    with listening(StubModel(), dataclasses.replace(SETTINGS, limits=limits)) as address:
        yield address


def detect(server: TestClient, *images: bytes, **fields: object) -> tuple[int, dict[str, Any]]:
    body, headers = form(*images, **fields)
    answer = server.post("/v1/detect", content=body, headers=headers)
    assert answer.headers["content-type"] == "application/json"
    return answer.status_code, answer.json()


def of_mode(mode: str, kind: str, **options: Any) -> bytes:
    return encoded(Image.fromarray(pixels()).convert(mode), kind, **options)


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(pixels(seed=seed)) for seed in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def bomb() -> bytes:
    """A PNG of some 20 KB that unpacks to 13000 × 13000 pixels."""
    return encoded(Image.new("1", (13_000, 13_000)))


@pytest.mark.parametrize(
    ("image", "status", "text"),
    [
        (encoded(pixels(200, 300), "JPEG")[:-2000], 422, "truncated or damaged (image file is truncated"),
        (GOOD[:-300], 422, "truncated or damaged"),
        (bomb(), 413, "13000 × 13000 pixels, at most 40000000 and 16384 a side are taken"),
        (header_alone(60_000, 60_000), 413, "far more pixels than the 40000000 that are taken"),
        (encoded(Image.new("1", (20_000, 1))), 413, "20000 × 1 pixels"),
        (b"", 422, "empty, 0 bytes"),
        (b"<!DOCTYPE html><html><body>404</body></html>", 415, "none of the formats JPEG, PNG, WEBP, BMP"),
        (animated("GIF"), 415, "none of the formats"),
        (encoded(pixels(), "TIFF"), 415, "none of the formats"),
        (b"\xff\xd8\xff" + b"\0" * 1000, 415, "none of the formats"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 1000, 415, "none of the formats"),
        (GOOD + b"\0" * (10 * 2**20 - len(GOOD) + 1), 413, "10485761 bytes, at most 10485760 are taken"),
    ],
    ids=["jpeg", "png", "bomb", "large-bomb", "long", "empty", "html", "gif", "tiff", "jpeg-head", "png-head", "big"],
)  # fmt: skip
def test_an_image_that_cannot_be_used_is_explained(server: TestClient, image: bytes, status: int, text: str) -> None:
    got, answer = detect(server, GOOD, image)
    assert (got, answer.keys()) == (status, {"error"})
    assert answer["error"].startswith("image 1 ('1.png'): ")
    assert text in answer["error"]
    assert detect(server, GOOD)[0] == 200


@pytest.mark.parametrize(
    "image",
    [
        animated("WEBP"),
        animated("PNG"),
        of_mode("CMYK", "JPEG"),
        of_mode("P", "PNG"),
        of_mode("P", "PNG", transparency=3),
        of_mode("LA", "PNG"),
        of_mode("RGBA", "WEBP"),
        of_mode("1", "BMP"),
        encoded(Image.fromarray(pixels()[..., 0].astype(np.uint16) * 257)),
        GOOD + b"<?php ?>",
    ],
    ids=["webp", "apng", "cmyk", "palette", "transparent", "grey-alpha", "rgba", "one-bit", "sixteen-bit", "tail"],
)
def test_an_image_of_an_unusual_kind_is_taken(server: TestClient, image: bytes) -> None:
    status, answer = detect(server, image)
    assert status == 200
    assert (answer["images"][0]["width"], answer["images"][0]["height"]) == (80, 60)


def test_the_rotation_of_a_photo_is_applied(server: TestClient) -> None:
    exif = Image.Exif()
    exif[274] = 6
    status, answer = detect(server, encoded(pixels(), "JPEG", exif=exif))
    assert status == 200
    assert (answer["images"][0]["width"], answer["images"][0]["height"]) == (60, 80)
    assert detect(server, encoded(pixels(), "JPEG", exif=b"Exif\0\0 damaged"))[0] == 200


def test_a_bomb_costs_no_memory(server: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: object) -> None:
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    assert detect(server, bomb())[0] == 413


def test_an_image_that_resizing_would_blow_up_is_refused() -> None:
    unbounded = PreprocessingSpec(size=800, max_size=None)
    with client(StubModel(unbounded)) as server:
        status, answer = detect(server, encoded(Image.new("1", (16_000, 1))))
        assert (status, "too elongated for this model" in answer["error"]) == (413, True)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"threshold": "nan"}, "threshold: Input should be a finite number"),
        ({"threshold": "inf"}, "threshold: "),
        ({"threshold": "1.5"}, "threshold: Input should be less than or equal to 1"),
        ({"threshold": "half"}, "threshold: Input should be a valid number"),
        ({"threshold": ""}, "threshold: "),
        ({"max_detections": "0"}, "max_detections: Input should be greater than or equal to 1"),
        ({"max_detections": "9" * 5000}, "max_detections: "),
        ({"treshold": "0.5"}, "treshold: Extra inputs are not permitted"),
        ({"t" * 1000: "0.5"}, "t" * 80 + ": Extra inputs are not permitted"),
        ({"url": "http://169.254.169.254/"}, "url: Extra inputs are not permitted"),
    ],
)
def test_a_field_that_is_unknown_or_impossible_is_named(server: TestClient, fields: dict[str, str], text: str) -> None:
    status, answer = detect(server, GOOD, **fields)
    assert status == 422
    assert text in answer["error"]
    assert detect(server, GOOD)[0] == 200


def test_a_path_is_not_opened(server: TestClient) -> None:
    assert detect(server, GOOD, images="/etc/passwd") == (
        415,
        {"error": "image 1: not an image, or none of the formats JPEG, PNG, WEBP, BMP; convert it to JPEG or PNG"},
    )


def test_fields_do_what_they_say(server: TestClient) -> None:
    image = encoded(np.full((60, 80, 3), 255, np.uint8))
    found = [len(detect(server, image, **fields)[1]["images"][0]["detections"])
             for fields in ({"threshold": 0.4}, {"threshold": 0.6}, {"threshold": 0.95}, {"threshold": 0, "max_detections": 1})]  # fmt: skip
    assert found == [2, 1, 0, 1]


def test_requests_that_are_no_form_are_explained(server: TestClient) -> None:
    body, headers = form(GOOD)
    cases: list[tuple[bytes, dict[str, str], str, int, str]] = [
        (body, {"Content-Type": "application/json"}, "", 415, "got 'application/json', expected multipart/form-data"),
        (body, {}, "", 415, "got '', expected multipart/form-data"),
        (body, {"Content-Type": "multipart/form-data"}, "", 400, "expected a boundary of 1 to 200 characters"),
        (body, {"Content-Type": "multipart/form-data; boundary=" + "b" * 300}, "", 400, "expected a boundary"),
        (body[:-10], headers, "", 400, "form: breaks off before its last boundary"),
        (b"", headers, "", 400, "form: breaks off before its last boundary"),
        (b"rubbish", headers, "", 400, "form: cannot be parsed"),
        (body.replace(b'name="images"', b'nome="images"'), headers, "", 400, "form: got a part without a name"),
        (
            body.replace(b'name="images"', b'name="image"'),
            headers,
            "",
            422,
            "image: got a file, expected files as 'images'",
        ),
        (form(threshold=0.5)[0], headers, "", 422, "images: expected at least one file"),
        (form(*[GOOD] * 30)[0], headers, "", 413, "form: more than 24 parts"),
        (body, headers, "?threshold=0.9", 422, "query: got ['threshold'], expected none"),
    ]
    for content, head, query, status, text in cases:
        answer = server.post(f"/v1/detect{query}", content=content, headers=head)
        assert answer.json().keys() == {"error"}
        assert (answer.status_code, text in answer.json()["error"]) == (status, True), answer.text
    twice, _ = form(GOOD, threshold=0.5)
    twice = twice.replace(
        b"--boundary--", b'--boundary\r\nContent-Disposition: form-data; name="threshold"\r\n\r\n1\r\n--boundary--'
    )
    assert server.post("/v1/detect", content=twice, headers=headers).json() == {"error": "threshold: given twice"}
    assert "at most 16 a request" in detect(server, *[GOOD] * 17)[1]["error"]
    assert detect(server, *[GOOD] * 16)[0] == 200


def test_addresses_that_do_not_exist_are_explained(server: TestClient) -> None:
    assert server.get("/v1/detect").status_code == 405
    assert server.get("/v1/detect").json() == {"error": "this address does not take that method"}
    for path in ("/", "/docs", "/../etc/passwd", "/v2/models/..%2f..%2fetc", "/v1/detect/", "/v2/health/live/"):
        answer = server.get(path, follow_redirects=False)
        assert (answer.status_code, answer.json().keys()) == (404, {"error"})


def test_a_fault_of_the_model_is_a_500_without_details(server: TestClient) -> None:
    model = StubModel()
    with client(model) as faulty:
        model.error = RuntimeError("secret path /home/me")
        assert detect(faulty, GOOD) == (500, {"error": "the server failed on this request; its log says how"})
        model.error = None
        assert detect(faulty, GOOD)[0] == 200
        assert 'siamdetr_requests_total{endpoint="/v1/detect",status="500"} 1.0' in faulty.get("/metrics").text


def connect(url: str) -> socket.socket:
    parts = urllib.parse.urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


def head(length: object, *lines: str) -> bytes:
    return "\r\n".join(
        ["POST /v1/detect HTTP/1.1", "Host: here", "Content-Type: multipart/form-data; boundary=boundary", *lines,
         f"Content-Length: {length}", "", ""]
    ).encode()  # fmt: skip


def answer_of(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, json.loads(response.read())


def works(url: str) -> bool:
    """Whether a request is answered, if necessary after broken connections were noticed."""
    body, _ = form(GOOD)
    for _ in range(100):
        with connect(url) as connection:
            connection.sendall(head(len(body)) + body)
            status, _ = answer_of(connection)
        if status != 503:
            return status == 200
        time.sleep(0.02)
    return False


def test_a_large_upload_is_refused_by_its_head_and_its_sender_learns_why(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(head(60 * 2**20))
        assert answer_of(connection)[0] == 413  # before a byte of it was sent
    with connect(url) as connection:
        connection.sendall(head(60 * 2**20))
        for _ in range(60):
            connection.sendall(bytes(2**20))
        status, answer = answer_of(connection)
        assert (status, answer["error"]) == (413, "body: got 62914560 bytes, at most 10551296 bytes are taken")
        body, _ = form(GOOD)
        connection.sendall(head(len(body)) + body)  # on the same connection
        assert answer_of(connection)[0] == 200


def test_a_body_of_no_declared_length_is_counted(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(
            b"POST /v1/detect HTTP/1.1\r\nHost: here\r\nContent-Type: multipart/form-data; boundary=boundary\r\n"
            b'Transfer-Encoding: chunked\r\n\r\n6e\r\n--boundary\r\nContent-Disposition: form-data; name="images"; '
            b'filename="a"\r\nContent-Type: image/png\r\n\r\n' + b"0" * 4 + b"\r\n"
        )
        chunk = b"10000\r\n" + bytes(2**16) + b"\r\n"
        try:
            for _ in range(400):
                connection.sendall(chunk)
        except OSError:
            pass  # the server has had enough
        else:
            raise AssertionError("25 MB went in")
    assert works(url)


def test_a_slow_body_is_ended_and_holds_nobody_up(url: str) -> None:
    with connect(url) as slow:
        slow.sendall(head(1000) + b"--boundary\r\n")
        assert works(url)
        started = time.monotonic()
        assert answer_of(slow) == (408, {"error": "the body did not arrive within 0.5 s"})
        assert time.monotonic() - started < 5
        assert slow.recv(1) == b""  # and the connection is over
    assert works(url)


def test_uploads_at_the_same_time_are_bounded(url: str) -> None:
    with connect(url) as first, connect(url) as second:
        for slow in (first, second):
            slow.sendall(head(1000))
        time.sleep(0.1)
        with connect(url) as third:
            third.sendall(head(1000))
            assert answer_of(third) == (503, {"error": "2 requests are under way already"})
    time.sleep(0.1)
    assert works(url)


@pytest.mark.parametrize(
    "sent", [b"POST /v1/det", head(1000), head(1000) + b"--boundary\r\n", head("x"), b"\0\1\2\r\n\r\n"]
)
def test_clients_that_leave_in_the_middle_leave_nothing_behind(
    url: str, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        with connect(url) as connection:
            connection.sendall(sent)
    assert works(url)
    assert "failed" not in caplog.text


def test_beyond_loopback_a_token_is_needed() -> None:
    with pytest.raises(
        ServeError, match=r"--host 0\.0\.0\.0: others could reach it, and no token is set; put one into"
    ):
        ServeSettings(host="0.0.0.0")
    with pytest.raises(ServeError, match="SIAMDETR_SERVE_TOKEN: got 5 characters, expected at least 16"):
        ServeSettings(token="short")
    with pytest.raises(ServeError, match="--queue: got 4, expected at least 16"):
        ServeSettings(queue_size=4)
    assert ServeSettings(host="0.0.0.0", token=TOKEN).host == "0.0.0.0"
    assert TOKEN not in repr(ServeSettings(token=TOKEN))
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "::", "10.0.0.1", "example")] == [True] * 3 + [False] * 3  # fmt: skip


def test_without_the_token_nothing_is_answered_but_the_probes() -> None:
    with client(StubModel(), ServeSettings(token=TOKEN)) as server:
        body, headers = form(GOOD)
        for given in (
            None,
            "Bearer",
            "Bearer wrong",
            f"Basic {TOKEN}",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            "Bearer ä",
        ):
            extra = {} if given is None else {"Authorization": given.encode()}
            answer = server.post("/v1/detect", content=body, headers={**headers, **extra})  # type: ignore[arg-type]
            assert answer.status_code == 401
            assert answer.json() == {"error": "authorization: expected 'Bearer TOKEN' with the server's token"}
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/metrics", "/v2", "/v2/models/siamdetr", "/openapi.json", "/nothing"):
            assert server.get(path).status_code == 401
            assert server.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code in (200, 404)
        assert server.get("/v2/health/live").status_code == server.get("/v2/health/ready").status_code == 200
        right = server.post("/v1/detect", content=body, headers={**headers, "Authorization": f"bearer {TOKEN}"})
        assert right.status_code == 200


def test_the_limits_are_those_of_the_documents() -> None:
    limits = Limits()
    assert (limits.max_image_bytes, limits.max_pixels, limits.max_side) == (10 * 2**20, 40_000_000, 16_384)
    assert (limits.inference_seconds, limits.body_seconds, limits.drain_seconds) == (10, 15, 15)
