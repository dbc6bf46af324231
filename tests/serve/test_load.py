"""More requests than a server can answer: some wait, some are refused, some are joined, none is left."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from helpers.serving import (
    SETTINGS,
    StubModel,
    client,
    encoded,
    eventually,
    figures,
    form,
    in_flight,
    listening,
    pixels,
)

from siamdetr.images.preprocessing import Prepared, preprocess
from siamdetr.inference.predictor import ScoredBoxes
from siamdetr.serve.batcher import Batcher, join
from siamdetr.serve.metrics import Metrics
from siamdetr.serve.server import create_app

GOOD = encoded(pixels())
SMALL = dataclasses.replace(SETTINGS.limits, max_images=2, inference_seconds=5.0)
Answer = tuple[int, dict[str, Any], dict[str, str]]


def ask(url: str, *images: bytes) -> Answer:
    body, headers = form(*images or (GOOD,), threshold=0)
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/detect", body, headers), timeout=30) as answer:
            return answer.status, json.load(answer), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), dict(error.headers)


def test_what_finds_no_room_is_refused_at_once_and_told_when_to_come_again() -> None:
    model = StubModel()
    with listening(model, dataclasses.replace(SETTINGS, queue_size=4, limits=SMALL)) as url:
        model.gate.clear()
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(ask, url) for _ in range(4)]
            eventually(lambda: in_flight(url) == 4)
            started = time.perf_counter()
            status, answer, headers = ask(url)
            assert time.perf_counter() - started < 2  # while the model stands still
            assert (status, headers["retry-after"]) == (429, "1")
            assert answer == {"error": "the queue of 4 images is full; come again after Retry-After"}
            model.gate.set()
            assert [one.result()[0] for one in waiting] == [200] * 4
        assert ask(url)[0] == 200
        counted = figures(url)
        assert counted["siamdetr_images_in_flight"] == 0
        assert counted['siamdetr_rejected_total{reason="queue full"}'] == 1
        assert counted['siamdetr_requests_total{endpoint="/v1/detect",status="200"}'] == 5
        assert counted['siamdetr_requests_total{endpoint="/v1/detect",status="429"}'] == 1
        for stage in ("decode", "queue", "model", "post"):
            assert counted[f'siamdetr_stage_seconds_count{{stage="{stage}"}}'] >= 5


def test_several_images_need_room_for_all_of_them() -> None:
    model = StubModel()
    with listening(model, dataclasses.replace(SETTINGS, queue_size=2, limits=SMALL)) as url:
        model.gate.clear()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(ask, url)
            eventually(lambda: in_flight(url) == 1)
            assert ask(url, GOOD, GOOD)[0] == 429
            model.gate.set()
            assert waiting.result()[0] == 200
        assert ask(url, GOOD, GOOD)[0] == 200


def test_waiting_images_of_one_size_are_joined_and_each_gets_its_own_answer() -> None:
    model = StubModel()
    with listening(model, dataclasses.replace(SETTINGS, max_batch=4)) as url:
        model.batches.clear()
        model.gate.clear()
        images = [np.full((60, 80, 3), 20 * i, np.uint8) for i in range(9)]
        with ThreadPoolExecutor(11) as pool:
            first = pool.submit(ask, url)  # keeps the only runner busy
            eventually(lambda: in_flight(url) == 1)
            time.sleep(0.1)
            waiting = [pool.submit(ask, url, encoded(image)) for image in images]
            other = pool.submit(ask, url, encoded(pixels(80, 60)))
            eventually(lambda: in_flight(url) == 11)
            time.sleep(0.2)
            model.gate.set()
            answers = [one.result()[1] for one in waiting]
            assert first.result()[0] == other.result()[0] == 200
        weaker = [answer["images"][0]["detections"][-1]["score"] for answer in answers]
        assert np.allclose(weaker, [20 * i / 255 / 2 for i in range(9)])
        assert sum(model.batches) == 11
        assert max(model.batches) == 4
        assert len(model.batches) <= 6


def test_a_free_runner_waits_no_longer_than_asked_for_others() -> None:
    with listening(StubModel(), dataclasses.replace(SETTINGS, max_batch=8, max_delay=0.2)) as url:
        started = time.perf_counter()
        assert ask(url)[0] == 200
        assert 0.2 <= time.perf_counter() - started < 3


def test_no_answer_before_the_deadline_is_a_504_and_nothing_is_computed_for_it() -> None:
    model = StubModel()
    limits = dataclasses.replace(SMALL, inference_seconds=0.3)
    with listening(model, dataclasses.replace(SETTINGS, limits=limits)) as url:
        model.batches.clear()
        model.gate.clear()
        with ThreadPoolExecutor(3) as pool:
            answers = [one.result() for one in [pool.submit(ask, url) for _ in range(3)]]
        assert [status for status, *_ in answers] == [504] * 3
        assert "no answer within 0.3 s" in answers[0][1]["error"]
        model.gate.set()
        assert ask(url)[0] == 200
        assert len(model.batches) == 2  # the one that had begun, and the last
        assert in_flight(url) == 0


def test_a_client_that_leaves_frees_its_place() -> None:
    model = StubModel()
    with listening(model, dataclasses.replace(SETTINGS, queue_size=2, limits=SMALL)) as url:
        model.batches.clear()
        model.gate.clear()
        for _ in range(3):
            body, headers = form(GOOD)
            with pytest.raises(TimeoutError):
                urllib.request.urlopen(urllib.request.Request(f"{url}/v1/detect", body, headers), timeout=0.2)
            eventually(lambda: in_flight(url) == 0)
        model.gate.set()
        assert ask(url)[0] == 200
        assert len(model.batches) == 2
        assert figures(url)['siamdetr_requests_total{endpoint="/v1/detect",status="499"}'] == 3


def test_runners_work_at_the_same_time() -> None:
    class Meeting(StubModel):
        """A model that answers only when two calls run at the same time."""

        def __init__(self) -> None:
            super().__init__()
            self.inside = 0
            self.most = 0

        def predict_batch(self, batch: Prepared) -> ScoredBoxes:
            self.inside += 1
            self.most = max(self.most, self.inside)
            time.sleep(0.2)
            self.inside -= 1
            return super().predict_batch(batch)

    model = Meeting()
    with listening(model, dataclasses.replace(SETTINGS, runners=2)) as url, ThreadPoolExecutor(4) as pool:
        statuses = Counter(one.result()[0] for one in [pool.submit(ask, url) for _ in range(4)])
        assert (statuses, model.most) == ({200: 4}, 2)


def test_a_server_is_live_before_it_is_ready() -> None:
    model = StubModel()
    model.gate.clear()
    with TestClient(create_app(model, SETTINGS)) as server:
        assert server.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", "/v2/models/siamdetr/ready"):
            assert server.get(path).status_code == 503
        body, headers = form(GOOD)
        answer = server.post("/v1/detect", content=body, headers=headers)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json() == {"error": "the server is warming up or about to stop", "ready": False}
        model.gate.set()
        eventually(lambda: server.get("/v2/health/ready").status_code == 200)
        assert server.post("/v1/detect", content=body, headers=headers).status_code == 200


def test_warming_up_runs_the_largest_batch() -> None:
    model = StubModel()
    with client(model, dataclasses.replace(SETTINGS, max_batch=4)):
        assert model.batches == [4, 1]


def test_joined_batches_keep_what_is_padding() -> None:
    images = np.zeros((1, 3, 4, 4), np.uint8)
    sizes = np.array([[4, 4]])
    padding = np.ones((1, 4, 4), np.bool_)
    joined = join([Prepared(images, None, sizes, sizes), Prepared(images, padding, sizes, sizes)])
    assert joined.padding is not None
    assert joined.padding.any((1, 2)).tolist() == [False, True]
    assert join([Prepared(images, None, sizes, sizes)] * 3).padding is None


def test_a_model_that_cannot_run_is_never_ready_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = StubModel()
    model.error = RuntimeError("no kernel image")
    with TestClient(create_app(model, SETTINGS)) as server:
        eventually(lambda: "no kernel image" in caplog.text)
        assert "Never ready: the model cannot run." in caplog.text
        assert server.get("/v2/health/ready").status_code == 503
        assert server.get("/v2/health/live").status_code == 200


def test_who_gives_up_leaves_no_image_behind_a_long_model_call() -> None:
    async def waiting_units() -> int:
        model = StubModel()
        batcher = Batcher(model, Metrics(), runners=1, max_batch=1, max_delay=0)
        model.gate.clear()
        unit = preprocess([pixels()], model.preprocessing)
        callers = [asyncio.create_task(batcher.run(unit)) for _ in range(6)]
        await asyncio.sleep(0.1)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        left = len(batcher._waiting)
        model.gate.set()
        await batcher.stop()
        return left

    assert asyncio.run(waiting_units()) == 0
