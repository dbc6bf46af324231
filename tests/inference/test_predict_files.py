"""Prediction of files: threads read ahead, results keep the order, and a bad file stops no other."""

from __future__ import annotations

import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from helpers.data_sets import write_image
from helpers.tiny_models import tiny_model

from siamdetr.inference.predict_files import Failed, Found, predict_files
from siamdetr.inference.predictor import predict
from siamdetr.inference.tiles import Tiling, predict_tiled
from siamdetr.system.ordered_map import ordered_map


def test_results_keep_the_order_and_equal_those_of_one_image(tmp_path: Path) -> None:
    sizes = [(90, 70), (70, 90), (90, 70), (64, 64), (90, 70)]
    files = [write_image(tmp_path / f"{n}.png", seed=n, size=size) for n, size in enumerate(sizes)]
    files.insert(2, tmp_path / "bad.png")
    files[2].write_bytes(b"not an image")
    model = tiny_model()
    found = list(predict_files(model, files, threshold=0.0, batch_size=4))
    assert [one.file for one in found] == files
    assert isinstance(found[2], Failed)
    assert "bad.png" in found[2].reason
    for one in found[:2] + found[3:]:
        assert isinstance(one, Found)
        alone = predict(model, one.file, threshold=0.0)
        assert np.allclose(one.detections.xyxy, alone.xyxy, atol=1e-3)


def test_tiles_are_those_of_one_image(tmp_path: Path) -> None:
    file = write_image(tmp_path / "a.png", size=(90, 70))
    (found,) = predict_files(tiny_model(), [file], threshold=0.0, tiling=Tiling(64))
    assert isinstance(found, Found)
    alone = predict_tiled(tiny_model(), file, Tiling(64), threshold=0.0)
    assert np.allclose(found.detections.xyxy, alone.xyxy, atol=1e-3)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_map_over_threads_keeps_the_order_and_takes_few_items_ahead(workers: int) -> None:
    taken: list[int] = []

    def take(number: int) -> int:
        taken.append(number)
        return number

    answers = ordered_map(lambda x: (x * x, threading.get_ident()), map(take, range(1000)), workers, ahead=5)
    for done, (square, thread) in enumerate(islice(answers, 20)):
        assert square == done * done
        assert (thread == threading.get_ident()) == (workers == 0)
        assert len(taken) <= done + 1 + 5
