"""The public API: `SiamDETR` and `load`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import supervision as sv
import torch
from helpers.tiny_models import NAMES, TINY, tiny_model
from PIL import Image

import siamdetr
from siamdetr.api import SiamDETR, load
from siamdetr.errors import CheckpointError, ImageError
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.models.detector import Detector
from siamdetr.settings.detector import DetectorSettings


@pytest.fixture(scope="module")
def model() -> SiamDETR:
    return tiny_model()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    shapes = [(60, 80), (80, 60), (60, 80), (50, 50), (60, 80)]
    return [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in shapes]


def same(a: sv.Detections, b: sv.Detections) -> bool:
    return (
        np.allclose(a.xyxy, b.xyxy, atol=1e-3)
        and np.allclose(np.asarray(a.confidence), np.asarray(b.confidence), atol=1e-5)
        and (np.asarray(a.class_id) == np.asarray(b.class_id)).all()
    )


def test_one_image_gives_detections_and_a_list_gives_a_list(model: SiamDETR, images: list[Image.Image]) -> None:
    one = model.predict(images[0], threshold=0.0)
    assert isinstance(one, sv.Detections)
    assert one.xyxy.shape == (60, 4)  # 20 queries of 3 classes
    assert list(one.data["class_name"]) == [NAMES[label] for label in np.asarray(one.class_id)]
    assert (np.diff(np.asarray(one.confidence)) <= 0).all()
    assert one.xyxy.min() >= 0
    assert (one.xyxy.max(0) <= (80, 60, 80, 60)).all()
    many = model.predict(images)
    assert isinstance(many, list)
    assert len(many) == 5
    assert model.predict([]) == []


def test_an_image_s_detections_do_not_depend_on_its_neighbours(model: SiamDETR, images: list[Image.Image]) -> None:
    many = model.predict(images, threshold=0.2, batch_size=2)
    for image, batched in zip(images, many, strict=True):
        alone = model.predict(image, threshold=0.2)
        assert isinstance(alone, sv.Detections)
        assert len(alone) > 0
        assert same(alone, batched)


def test_a_threshold_keeps_what_reaches_it(model: SiamDETR, images: list[Image.Image]) -> None:
    found = model.predict(images[0], 0.6)
    assert isinstance(found, sv.Detections)
    assert 0 < len(found) < 60
    assert np.asarray(found.confidence).min() >= 0.6
    nothing = model.predict(images[0], 1.0)
    assert isinstance(nothing, sv.Detections)
    assert len(nothing) == 0
    with pytest.raises(ValueError, match="threshold: got 50, expected a score from 0 to 1"):
        model.predict(images[0], 50)


def test_predict_follows_weights_that_change(images: list[Image.Image]) -> None:
    model = tiny_model()
    before = model.predict(images[0], 0.0)
    with torch.no_grad():
        model.detector.backbone.body.conv1.weight.mul_(3)
    after = model.predict(images[0], 0.0)
    assert isinstance(before, sv.Detections)
    assert isinstance(after, sv.Detections)
    assert not same(before, after)


def test_predict_leaves_the_mode_of_the_detector_alone(images: list[Image.Image]) -> None:
    model = tiny_model()
    model.detector.train()
    first, second = model.predict([images[0]], 0.0), model.predict([images[0]], 0.0)
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert same(first[0], second[0])  # dropout was off
    assert model.detector.training


def test_a_model_is_the_same_after_save_and_load(model: SiamDETR, images: list[Image.Image], tmp_path: Path) -> None:
    model.save(tmp_path / "best.safetensors")
    for path in (tmp_path / "best.safetensors", tmp_path):
        loaded = siamdetr.load(path)
        assert isinstance(loaded, SiamDETR)
        assert loaded.class_names == NAMES
        assert loaded.category_ids == (1, 5, 9)
        assert loaded.preprocessing == model.preprocessing
        a, b = model.predict(images[1], 0.0), loaded.predict(images[1], 0.0)
        assert isinstance(a, sv.Detections)
        assert isinstance(b, sv.Detections)
        assert np.array_equal(a.xyxy, b.xyxy)
    assert loaded.info["file"] == str(tmp_path / "best.safetensors")
    assert loaded.info["lineage"] == ("a test",)
    assert loaded.info["variant"] == "conditional"
    assert loaded.info["parameters"] > 1000


def test_load_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=r"a folder without best\.safetensors"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match=r"a model file ends in \.safetensors"):
        tiny_model().save(tmp_path / "model.pt")


def test_a_pretrained_model_predicts_objects(images: list[Image.Image]) -> None:
    detector = Detector(DetectorSettings(**TINY, num_classes=1, num_queries=5))
    model = SiamDETR.from_parts(detector, class_names=("object",), preprocessing=PreprocessingSpec.from_size(64))
    found = model.predict(images[0], 0.0)
    assert isinstance(found, sv.Detections)
    assert set(found.data["class_name"]) == {"object"}


def test_letterbox_models_predict_in_pixels_of_the_image(images: list[Image.Image]) -> None:
    model = tiny_model(spec=PreprocessingSpec(mode="letterbox", size=(64, 96)))
    found = model.predict(images, 0.0)
    assert isinstance(found, list)
    assert [len(one) for one in found] == [60] * 5
    assert (found[1].xyxy.max(0) <= (60, 80, 60, 80)).all()


def test_attention_maps_sum_to_one(model: SiamDETR, images: list[Image.Image]) -> None:
    maps = model.attention(images[0])
    assert maps.shape == (2, 2, 20, 3, 4)
    assert np.allclose(maps.sum((-1, -2)), 1, atol=1e-5)


def test_the_constructor_takes_numbers_or_names() -> None:
    model = SiamDETR("vanilla", backbone="resnet18", class_names=["a", "b"])
    assert model.class_names == ("a", "b")
    assert model.detector.settings.classifier == "softmax"
    assert SiamDETR(backbone="resnet18", num_classes=2).class_names == ("class_0", "class_1")
    with pytest.raises(ValueError, match="got no classes; give num_classes=20"):
        SiamDETR()
    with pytest.raises(ValueError, match="got num_classes=3 and 2 class names"):
        SiamDETR(num_classes=3, class_names=["a", "b"])


def test_errors_of_pictures_reach_the_caller(model: SiamDETR, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.jpg: no such file"):
        model.predict(tmp_path / "none.jpg")


def test_names_must_fit_the_detector() -> None:
    with pytest.raises(ValueError, match="got 2 class names for a detector of 3 classes"):
        SiamDETR.from_parts(tiny_model().detector, class_names=("a", "b"), preprocessing=PreprocessingSpec())
