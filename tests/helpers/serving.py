"""Helpers for tests of the server: picture files, requests, a model without weights, and servers."""

from __future__ import annotations

import io
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from siamdetr.images.preprocessing import Prepared, PreprocessingSpec
from siamdetr.inference.predictor import Predictor, ScoredBoxes
from siamdetr.serve.process import uvicorn_config
from siamdetr.serve.server import create_app
from siamdetr.serve.settings import ServeSettings

SETTINGS = ServeSettings()


def pixels(height: int = 60, width: int = 80, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image | NDArray[np.uint8], kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def form(*images: bytes, boundary: str = "boundary", **fields: object) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a request with files and fields."""
    parts = [
        b'Content-Disposition: form-data; name="images"; filename="%d.png"\r\n\r\n%b' % (i, image)
        for i, image in enumerate(images)
    ]
    parts += [
        f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()
    ]
    mark = boundary.encode()
    body = b"".join(b"--%b\r\n%b\r\n" % (mark, part) for part in parts) + b"--%b--\r\n" % mark
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


class StubModel:
    """Two boxes an image, after waiting for `gate`; remembers the sizes of its batches."""

    def __init__(self, spec: PreprocessingSpec | None = None) -> None:
        self.class_names = ("cat", "dog")
        self.threshold = 0.5
        self.threshold_from = ""
        self.preprocessing = spec or PreprocessingSpec.from_size(32)
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []
        self.error: Exception | None = None

    def predict_batch(self, batch: Prepared) -> ScoredBoxes:
        self.gate.wait(20)
        if self.error is not None:
            raise self.error
        self.batches.append(len(batch))
        first = batch.images.reshape(len(batch), -1)[:, :1] / 255 / 2  # an image's answer is its own
        scores = np.concatenate([first, np.full_like(first, 0.9)], axis=1).astype(np.float32)
        boxes = np.tile(np.array([[1, 2, 30, 40], [0, 0, 9, 9]], dtype=np.float32), (len(batch), 1, 1))
        return ScoredBoxes(scores, np.tile([0, 1], (len(batch), 1)), boxes)


@contextmanager
def client(model: Predictor, settings: ServeSettings = SETTINGS) -> Iterator[TestClient]:
    """A client of a server in this process, once the server is ready.

    Exceptions of the server do not reach the client, as over a network.
    """
    with TestClient(create_app(model, settings), raise_server_exceptions=False) as opened:
        while opened.get("/v2/health/ready").status_code != 200:
            pass
        yield opened


@contextmanager
def listening(model: Predictor, settings: ServeSettings = SETTINGS) -> Iterator[str]:
    """The address of a server on a real socket of this machine, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn_config(create_app(model, settings), settings))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        url = "http://{}:{}".format(*listener.getsockname())
        try:
            wait_until_ready(url)
            yield url
        finally:
            server.should_exit = True
            thread.join(30)
        assert not thread.is_alive()


def wait_until_ready(url: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5):
                return
        except OSError:  # refused, or 503
            time.sleep(0.02)
    raise TimeoutError(f"{url} did not become ready")


def figures(url: str) -> dict[str, float]:
    """The figures of /metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def in_flight(url: str) -> float:
    return figures(url)["siamdetr_images_in_flight"]
