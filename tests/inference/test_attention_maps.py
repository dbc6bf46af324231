"""Attention of every variant, computed on demand, equals what the detector itself computed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from helpers.tiny_models import TINY, tiny_model
from PIL import Image

from siamdetr.api import SiamDETR
from siamdetr.images.preprocessing import PreprocessingSpec, preprocess
from siamdetr.inference.attention_maps import Inspection, RecordedInspection, inspection_of_outputs
from siamdetr.inference.attention_recorder import trace_attention
from siamdetr.inference.predictor import ScoredBoxes
from siamdetr.inference.pytorch import normalize_prepared
from siamdetr.models.attention import ScaledDotProduct, record_attention
from siamdetr.models.deformable.attention import DeformableAttention
from siamdetr.models.detector import Detector
from siamdetr.settings.detector import DetectorSettings
from siamdetr.settings.registry import DETECTORS


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


@pytest.fixture(scope="module", params=sorted(DETECTORS))
def model(request: pytest.FixtureRequest) -> SiamDETR:
    model = tiny_model(request.param)
    model.detector.eval()
    return model


def test_boxes_equal_predict_and_maps_equal_attention(model: SiamDETR, picture: Image.Image) -> None:
    seen = model.inspect(picture)
    batch = preprocess([picture], model.preprocessing)
    np.testing.assert_array_equal(seen.scored.boxes, model.predict_batch(batch).boxes)
    assert seen.size == (60, 80)
    maps = model.attention(picture)  # [L, M, Q, h, w]
    for box in (0, 17, 59):
        attention = seen.decoder_attention(box)
        np.testing.assert_allclose(attention.maps, maps[:, :, seen.queries[box]], atol=2e-5)
        if attention.weights is not None and attention.points is not None:
            np.testing.assert_allclose(attention.weights.sum(-1), 1, rtol=1e-5)
            assert attention.points.shape == (*attention.weights.shape, 2)
        else:
            np.testing.assert_allclose(attention.maps.sum((-2, -1)), 1, rtol=1e-5)


def test_a_box_of_a_query_is_the_query_s(picture: Image.Image) -> None:
    """Focal loss gives several boxes of one query: they share their maps; softmax gives one box per query."""
    model = tiny_model("conditional", "softmax")
    seen = model.inspect(picture)
    assert seen.queries == tuple(range(20))
    seen = tiny_model().inspect(picture)
    first = {query: box for box, query in reversed(list(enumerate(seen.queries)))}
    for box, query in enumerate(seen.queries):
        np.testing.assert_array_equal(seen.scored.boxes[0, box], seen.scored.boxes[0, first[query]])


def test_references_are_where_boxes_start(model: SiamDETR, picture: Image.Image) -> None:
    references = model.inspect(picture).decoder_attention(3).references
    if model.detector.settings.variant == "vanilla":
        assert references is None
        return
    assert references is not None
    assert references.shape[0] == 2  # layers
    assert references.shape[1] in (2, 4)
    assert ((references >= 0) & (references <= 1)).all()


def test_encoder_attention_of_a_point_is_what_its_layer_mixed(model: SiamDETR, picture: Image.Image) -> None:
    images, padding = normalize_prepared(preprocess([picture], model.preprocessing), model.preprocessing, "cpu")
    first = next(m for m in model.detector.encoder.modules() if isinstance(m, ScaledDotProduct | DeformableAttention))
    mixed: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = first.register_forward_hook(lambda module, inputs, out: mixed.append((inputs[2], out)))
    first.observable = True
    with torch.inference_mode(), record_attention(model.detector) as maps:
        model.detector.encode(images, padding)
    first.observable = False
    handle.remove()
    row, column = 1, 2
    seen = model.inspect(picture)
    height, width = seen.encoder_grid  # of RT-DETR the coarsest level, of others the finest
    attention = seen.encoder_attention((column + 0.5) / width, (row + 0.5) / height)
    cell = row * width + column
    if isinstance(first, DeformableAttention):
        np.testing.assert_allclose(attention.maps[0], maps[0][0, :, cell], atol=1e-5)
        assert attention.points is not None
    else:
        values, out = mixed[0]
        expected = torch.from_numpy(attention.maps[0]).flatten(1)[:, None] @ values[0]  # [M, 1, e]
        torch.testing.assert_close(expected.flatten(), out[0, cell], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(attention.maps.sum((-2, -1)), 1, rtol=1e-5)


def test_tracing_changes_nothing_and_ends_with_its_block(model: SiamDETR, picture: Image.Image) -> None:
    batch = preprocess([picture], model.preprocessing)
    images, padding = normalize_prepared(batch, model.preprocessing, "cpu")
    with torch.inference_mode():
        before = model.detector(images, padding)
        with trace_attention(model.detector) as trace:
            within = model.detector(images, padding)
        count = len(trace.decoder)
        model.detector(images, padding)
    assert torch.equal(before.boxes, within.boxes)
    assert len(trace.decoder) == count == 2


def test_of_a_letterboxed_image_only_the_image_is_shown(model: SiamDETR, picture: Image.Image) -> None:
    spec = PreprocessingSpec(mode="letterbox", size=(128, 128), max_size=None)
    detector = copy.deepcopy(model.detector)
    with torch.no_grad():
        for parameter in detector.box_head.parameters():
            parameter.mul_(
                0.1
            )  # boxes near their references: RT-DETR samples inside its boxes, and wild ones have no size
    boxed = SiamDETR.from_parts(detector, class_names=model.class_names, preprocessing=spec)
    seen = boxed.inspect(picture)
    box = _box_inside(seen)
    attention = seen.decoder_attention(box)
    height, width = attention.maps.shape[-2:]
    assert height < width
    batch = preprocess([picture], spec)
    with torch.inference_mode(), record_attention(boxed.detector) as maps:
        boxed.detector(*normalize_prepared(batch, spec, "cpu"))
    if attention.points is None:
        kept = maps[0][0, :, seen.queries[box], :height, :width].numpy()
        np.testing.assert_allclose(attention.maps[0], kept, atol=2e-5)
        assert kept.sum() == pytest.approx(2, rel=1e-4)  # nothing of the two heads is in the padding
    else:
        whole = maps[0][0, :, seen.queries[box]].numpy()  # over the padded input, of which the image is the upper 3/4
        rows = np.arange(whole.shape[-2]) + 0.5
        spread = (whole.sum((0, 2)) * rows).sum() / whole.sum() / whole.shape[-2]
        points, weights = attention.points[0], attention.weights
        assert weights is not None
        inside = (points > 0.05).all(-1) & (points < 0.95).all(-1)
        mean = (points[..., 1] * weights[0] * inside).sum() / (weights[0] * inside).sum()
        assert mean * 0.75 == pytest.approx(spread, abs=0.12)


def _box_inside(seen: Inspection) -> int:
    """The first box whose query has sampling points inside the image.

    The query of a proposal in the padding has none.
    """
    for box in range(seen.scored.scores.shape[1]):
        points = seen.decoder_attention(box).points
        if points is None or ((points[0] > 0.05) & (points[0] < 0.95)).all(-1).any():
            return box
    raise AssertionError("no query samples inside the image")


def test_several_levels_share_one_small_grid(picture: Image.Image) -> None:
    torch.manual_seed(0)
    settings = DetectorSettings.model_validate(
        {
            **TINY,
            "variant": "deformable",
            "classifier": "focal",
            "num_classes": 3,
            "num_queries": 9,
            "levels": 3,
            "refine": True,
        }
    )
    spec = PreprocessingSpec.from_size(480, 640)
    model = SiamDETR.from_parts(Detector(settings), class_names=("a", "b", "c"), preprocessing=spec)
    seen = model.inspect(picture)
    attention = seen.decoder_attention(0)
    assert max(attention.maps.shape[-2:]) == 64
    assert attention.points is not None
    assert attention.references is not None
    assert attention.points.shape[2] == 3 * 4  # levels times points
    assert attention.references.shape == (2, 2)
    assert seen.encoder_attention(1.0, 1.0).maps.shape[-2:] == attention.maps.shape[-2:]


def test_questions_without_an_answer_say_so(picture: Image.Image) -> None:
    seen = tiny_model().inspect(picture)
    with pytest.raises(ValueError, match="box: got number 60, expected 0 to 59"):
        seen.decoder_attention(60)
    with pytest.raises(ValueError, match=r"point: got \(1.5, 0\), expected fractions of the image from 0 to 1"):
        seen.encoder_attention(1.5, 0.0)
    with pytest.raises(ValueError, match="point: got"):
        seen.encoder_attention(float("nan"), 0.0)
    bare = Detector(DetectorSettings.model_validate({**TINY, "encoder_layers": 0, "num_classes": 1, "num_queries": 4}))
    model = SiamDETR.from_parts(bare, class_names=("a",), preprocessing=PreprocessingSpec.from_size(64))
    assert not model.inspect(picture).has_encoder_attention
    with pytest.raises(ValueError, match="encoder has no layers, hence no attention"):
        model.inspect(picture).encoder_attention(0.5, 0.5)


def test_recorded_arrays_answer_for_the_decoder_alone() -> None:
    scored = ScoredBoxes(np.ones((1, 2), np.float32), np.zeros((1, 2), np.int64), np.zeros((1, 2, 4), np.float32))
    maps = np.random.default_rng(0).random((3, 4, 2, 5, 6), dtype=np.float32)
    seen = RecordedInspection(scored, (50, 60), maps)
    np.testing.assert_array_equal(seen.decoder_attention(1).maps, maps[:, :, 1])
    assert seen.has_decoder_attention
    assert not seen.has_encoder_attention
    with pytest.raises(ValueError, match="box: got number -1, expected 0 to 1"):
        seen.decoder_attention(-1)
    with pytest.raises(ValueError, match="keeps no attention of its encoder; open the run's checkpoint"):
        seen.encoder_attention(0.5, 0.5)
    with pytest.raises(ValueError, match="keeps no attention; export it again with --attention"):
        RecordedInspection(scored, (50, 60), None).decoder_attention(0)


def test_a_graph_s_attention_is_taken_of_all_layers_or_of_the_last_queries(picture: Image.Image) -> None:
    rng = np.random.default_rng(0)
    spec = PreprocessingSpec(mode="letterbox", size=(80, 80), max_size=None)
    batch = preprocess([picture], spec)  # 60 of 80 rows are image
    found = {
        "boxes": rng.random((1, 2, 4), dtype=np.float32),
        "scores": np.ones((1, 2), np.float32),
        "labels": np.zeros((1, 2), np.int64),
    }
    layers = rng.random((1, 3, 4, 2, 8, 8), dtype=np.float32)
    seen = inspection_of_outputs({**found, "attention": layers}, batch)
    np.testing.assert_array_equal(seen.decoder_attention(1).maps, layers[0, :, :, 1, :6])
    assert seen.size == (60, 80)
    last, queries = rng.random((1, 4, 9, 8, 8), dtype=np.float32), np.array([[7, 3]])
    seen = inspection_of_outputs({**found, "attention": last, "queries": queries}, batch)
    np.testing.assert_array_equal(seen.decoder_attention(0).maps, last[:, :, 7, :6])
    assert not inspection_of_outputs(found, batch).has_decoder_attention
