"""Cached views: equal to the features that a step computes, refused if wrong, and a full disk."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.signals import SignalAt
from helpers.training_data import METHODS, pretrain_settings, write_data

from siamdetr.data.readers.recognise import open_dataset
from siamdetr.drawing.html_page import read_metrics
from siamdetr.errors import DataError
from siamdetr.images.preprocessing import IMAGENET
from siamdetr.model_file import load_model
from siamdetr.models.backbone.pyramid import as_levels
from siamdetr.models.detector import Detector
from siamdetr.pretext import view_cache
from siamdetr.pretext.cached_views import CachedPair, CachedViews, as_bytes, collate_cached
from siamdetr.pretext.common import pretext_settings
from siamdetr.pretext.datasets import SiameseDataset, collate_views
from siamdetr.pretext.run_settings import PretrainSettings
from siamdetr.pretext.siamese import SiameseDETR
from siamdetr.pretext.view_cache import CacheRequest, cached_views
from siamdetr.settings.detector import DetectorSettings
from siamdetr.settings.pretext import SiameseSettings
from siamdetr.system.signals import Interrupted
from siamdetr.training.pretrain import pretrain

PAIRS = 2


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", train=3, val=1)


def settings(data: Path, output: Path, **changes: object) -> PretrainSettings:
    siamese = {**METHODS["siamese"], "cache_views": PAIRS, "size": [64, 64]}
    return pretrain_settings(data, output, siamese=siamese, **changes)


def of_cache(runs: Path) -> Path:
    (folder,) = (runs / "views").iterdir()
    return folder


def quiet(done: int, total: int) -> None:
    """Progress that nobody sees."""


def test_a_channel_is_kept_to_half_a_step_whatever_its_range(tmp_path: Path) -> None:
    make = np.random.default_rng(0)
    ranges = np.asarray([0, 1e-3, 1, 300], np.float32)[None, :, None, None]
    level = (make.standard_normal((2, 4, 5, 6)) * ranges).astype(np.float16)
    crops = make.standard_normal((2, 3, 4)).astype(np.float16)
    pair = CachedPair((level,), np.zeros((2, 3, 4), np.float32), crops, (40, 48))
    (tmp_path / "features.i8").write_bytes(as_bytes(pair) * 2)
    np.savez(tmp_path / "tables.npz", shapes=[[[4, 5, 6]]] * 2, boxes=np.stack([pair.boxes] * 2), sizes=[[40, 48]] * 2)
    kept = CachedViews(tmp_path, 2)[1, 0]
    assert kept.levels[0].dtype == np.float16
    error = np.abs(kept.levels[0].astype(np.float32) - level.astype(np.float32))
    assert (error <= np.abs(level).max((2, 3), keepdims=True) / 254 * 1.02).all()
    assert np.array_equal(kept.crops, crops)


@torch.no_grad()
def test_cached_losses_are_those_of_computed_views(data: Path, tmp_path: Path) -> None:
    """To half a step of a channel, for views of one size, which no batch pads."""
    torch.manual_seed(0)
    shape = DetectorSettings.model_validate(
        {
            "variant": "deformable",
            "backbone": "test_resnet.r160_in1k",
            "levels": 3,
            "num_queries": 5,
            "dim": 32,
            "heads": 4,
        }
        | {"encoder_layers": 1, "decoder_layers": 2, "feedforward": 32}
    )
    own = SiameseSettings(num_regions=5, size=(64, 64), crop_size=32, cache_views=PAIRS, box_jitter=0.0)
    model = SiameseDETR(Detector(pretext_settings(shape)), own).eval()
    source = SiameseDataset(open_dataset(data, split="train"), None, own, seed=3)
    cache = cached_views(
        source, CacheRequest(tmp_path / "views", model.teacher, torch.device("cpu"), IMAGENET, 0), quiet
    )
    assert cache is not None
    for epoch in (0, 1, PAIRS):  # pairs come again after K epochs
        stored = collate_cached([cache[epoch, i] for i in (0, 2)])
        made = collate_views([source[epoch % PAIRS, i] for i in (0, 2)]).normalized(IMAGENET)
        torch.testing.assert_close(stored.boxes, made.boxes, rtol=0, atol=0)
        for a, b in zip(as_levels(stored.features(model.teacher)), as_levels(model.teacher(made.images)), strict=True):
            half_a_step = b.abs().amax((2, 3), keepdim=True) / 254
            assert ((a - b).abs() <= half_a_step + 2e-3 * b.abs() + 2e-3).all()
        kept, computed = model(stored), model(made)
        for name in model.loss_weights:
            torch.testing.assert_close(kept[name], computed[name], rtol=2e-2, atol=2e-2, msg=name)


def test_smaller_views_are_padded_with_zeros_as_their_padding_says(data: Path, tmp_path: Path) -> None:
    shapes = ((40, 48), (64, 32))
    items = [
        CachedPair(
            levels=(np.ones((2, 4, h // 8, w // 8), np.float16), np.ones((2, 6, h // 16, w // 16), np.float16)),
            boxes=np.zeros((2, 3, 4), np.float32), crops=np.full((2, 3, 10), i, np.float16), size=(h, w),
        )
        for i, (h, w) in enumerate(shapes)
    ]  # fmt: skip
    batch = collate_cached(items)
    assert [tuple(level.shape) for level in batch.levels] == [(4, 4, 8, 6), (4, 6, 4, 3)]
    assert batch.padding.shape == (4, 64, 48)
    for image, (h, w) in enumerate(shapes * 2):
        assert not batch.padding[image, :h, :w].any()
        assert int((~batch.padding[image]).sum()) == h * w
        assert float(batch.levels[0][image].sum()) == 4 * (h // 8) * (w // 8)
    assert batch.crops[:, 0, 0].tolist() == [0, 1, 0, 1]


def test_a_run_with_cached_views_trains_resumes_and_shares_the_cache(data: Path, tmp_path: Path) -> None:
    run = pretrain(settings(data, tmp_path / "runs" / "one"))
    folder = of_cache(tmp_path / "runs")
    assert sorted(file.name for file in folder.iterdir()) == ["cache.json", "features.i8", "tables.npz"]
    assert len(CachedViews(folder, PAIRS)) == 3
    assert "Matched predictions over time" in (run.folder / "report.html").read_text()
    written = (folder / "features.i8").stat().st_mtime_ns
    with pytest.raises(Interrupted):
        pretrain(settings(data, tmp_path / "runs" / "two"), progress=SignalAt(15, "train", 2))
    again = pretrain(settings(data, tmp_path / "runs" / "two"), resume="auto")
    assert (folder / "features.i8").stat().st_mtime_ns == written
    for name, value in load_model(run.model)[0].state_dict().items():
        assert torch.equal(value, load_model(again.model)[0].state_dict()[name]), name
    assert [row["loss"] for row in read_metrics(again.folder) if "loss" in row] == [
        row["loss"] for row in read_metrics(run.folder) if "loss" in row
    ]


@pytest.mark.parametrize("what", ["images", "weights", "settings"])
def test_a_cache_of_something_else_is_refused_with_the_difference(what: str, data: Path, tmp_path: Path) -> None:
    pretrain(settings(data, tmp_path / "runs" / "one", steps=1))
    folder = of_cache(tmp_path / "runs")
    if what == "images":
        (data / "train" / "1.png").write_bytes((data / "train" / "2.png").read_bytes() + b" ")
    about = json.loads((folder / "cache.json").read_text())
    if what == "settings":
        about["settings"]["view_iou"] = 0.7
    if what == "weights":
        about["weights"] = "0123456789abcdef"
    (folder / "cache.json").write_text(json.dumps(about))
    with pytest.raises(DataError) as caught:
        pretrain(settings(data, tmp_path / "runs" / "two", steps=1))
    text = str(caught.value)
    assert f"{folder}: cached views that were made from something else:\n  {what}: " in text
    assert text.count("\n  ") == 1
    assert "Delete the folder, and they are computed anew; or set cache_views=0" in text


def test_a_disk_that_fills_leaves_nothing_and_the_run_goes_on_without(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(pairs: object, request: object) -> object:
        yield from ()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(view_cache, "_pairs", full)
    with caplog.at_level(logging.WARNING, logger="siamdetr"):
        run = pretrain(settings(data, tmp_path / "runs" / "one", steps=2))
    assert run.steps == 2
    assert [file for file in (tmp_path / "runs" / "views").rglob("*") if file.is_file()] == []
    said = [record.getMessage() for record in caplog.records if "cached views" in record.getMessage()]
    assert len(said) == 1
    assert "the disk is full" in said[0]
    assert said[0].endswith("Going on without cached views: each step computes its own")
