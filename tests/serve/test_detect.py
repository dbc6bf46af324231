"""`POST /v1/detect`: the model's detections, and messages for invalid requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import supervision as sv
from fastapi.testclient import TestClient
from helpers.serving import client, encoded, pixels
from PIL import Image

from siamdetr.export.runtime import OnnxDetector


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> OnnxDetector:
    return OnnxDetector(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def server(model: OnnxDetector) -> Iterator[TestClient]:
    with client(model) as opened:
        yield opened


def test_the_server_finds_what_the_model_finds_bit_for_bit(server: TestClient, model: OnnxDetector) -> None:
    images = [pixels(60, 80), pixels(90, 50, seed=1), pixels(60, 80, seed=2)]
    files = [("images", (f"{i}.png", encoded(image))) for i, image in enumerate(images)]
    answer = server.post("/v1/detect", files=files, data={"threshold": "0.3"})
    assert answer.status_code == 200
    for image, found in zip(images, answer.json()["images"], strict=True):
        expected = model.predict(Image.fromarray(image), 0.3)
        assert isinstance(expected, sv.Detections)
        assert len(expected) > 0
        assert (found["height"], found["width"]) == image.shape[:2]
        assert np.array_equal(np.array([one["box"] for one in found["detections"]], np.float32), expected.xyxy)
        assert [one["score"] for one in found["detections"]] == np.asarray(expected.confidence).tolist()
        assert [one["name"] for one in found["detections"]] == list(expected.data["class_name"])
        assert [one["label"] for one in found["detections"]] == np.asarray(expected.class_id).tolist()
