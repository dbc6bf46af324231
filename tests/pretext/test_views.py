"""The two views: their geometry, the regions that both show, and torchvision's photometrics."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as functional
from helpers.pictures import coordinate_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from siamdetr.images.randomness import sample_random
from siamdetr.pretext import photometric, views
from siamdetr.settings.pretext import SiameseSettings

SETTINGS = SiameseSettings(size=96, num_regions=6, crop_size=32)
Rect = tuple[float, float, float, float]


def area(rect: Rect) -> float:
    return max(0.0, rect[2] - rect[0]) * max(0.0, rect[3] - rect[1])


def iou(a: Rect, b: Rect) -> float:
    shared = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return shared / (area(a) + area(b) - shared)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views without photometric augmentation."""
    monkeypatch.setattr(views, "augment", lambda pixels, rng: pixels)


@pytest.mark.parametrize(("t", "r"), [(0.3, 0.514), (0.5, 0.690), (0.7, 0.831)])
def test_the_intersection_has_the_side_ratio_of_the_paper(t: float, r: float) -> None:
    _, inner = views.two_views((0.0, 0.0, 100.0, 50.0), t, sample_random(0, 0, 0))
    assert (inner[2] - inner[0]) / 100 == pytest.approx(r, abs=1e-3)
    assert (inner[3] - inner[1]) / 50 == pytest.approx(r, abs=1e-3)
    assert (inner[0] + inner[2], inner[1] + inner[3]) == pytest.approx((100, 50))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), t=st.floats(0.1, 0.9), width=st.floats(40, 900), height=st.floats(40, 900))
def test_views_overlap_at_least_as_asked_and_exactly_in_the_intersection(
    seed: int, t: float, width: float, height: float
) -> None:
    outer = (3.0, 5.0, 3 + width, 5 + height)
    (a, b), inner = views.two_views(outer, t, sample_random(seed, 0, 0))
    assert t - 1e-6 <= iou(a, b) < 1
    shared = (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    assert shared == pytest.approx(inner)
    for view in (a, b):
        assert view[0] >= outer[0]
        assert view[1] >= outer[1]
        assert view[2] <= outer[2] + 1e-6
        assert view[3] <= outer[3] + 1e-6
        assert (view[2] - view[0]) / (view[3] - view[1]) == pytest.approx(width / height)


def test_mean_overlap_is_the_official_codes() -> None:
    overlaps = [iou(*views.two_views((0, 0, 300, 200), 0.5, sample_random(1, 0, i))[0]) for i in range(2000)]
    assert np.mean(overlaps) == pytest.approx(0.69, abs=0.01)


@pytest.mark.parametrize(("scales", "size", "shortest", "longest"), [("imagenet", 480, 320, 600), ("coco", 800, 480, 1333), ("imagenet", 96, 64, 120)])  # fmt: skip
def test_resizing_stays_within_the_published_scales(scales: str, size: int, shortest: int, longest: int) -> None:
    settings = SiameseSettings.model_validate({"scales": scales, "size": size})
    frames = [views.sample_geometry((375, 500), settings, sample_random(0, 0, i)).frame for i in range(300)]
    assert min(min(frame) for frame in frames) == shortest
    assert max(min(frame) for frame in frames) <= size
    assert max(max(frame) for frame in frames) <= longest
    wide = [views.sample_geometry((100, 900), settings, sample_random(0, 0, i)).frame for i in range(30)]
    assert max(max(frame) for frame in wide) == longest


@pytest.mark.usefixtures("plain")
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), with_proposals=st.booleans())
def test_a_region_shows_the_same_in_both_views_and_crops(seed: int, with_proposals: bool) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.random((30, 2, 2))
    proposals = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32) if with_proposals else None
    sample = views.make_views(coordinate_image(), proposals, SETTINGS, sample_random(seed, 0, 0))
    first, second = sample.images
    assert first.shape == second.shape
    height, width = first.shape[:2]
    boxes = sample.boxes
    assert boxes.shape == (2, 6, 4)
    assert boxes.dtype == np.float32
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    assert low.min() >= -1e-6
    assert high.max() <= 1 + 1e-6
    assert boxes[..., 2:].min() > 0
    for p in range(6):
        means = []
        for which in range(2):
            x0, y0 = np.floor(low[which, p] * (width, height)).astype(int)
            x1, y1 = np.ceil(high[which, p] * (width, height)).astype(int)
            means.append(sample.images[which][y0:y1, x0:x1, :2].reshape(-1, 2).mean(axis=0))
        assert means[0] == pytest.approx(means[1], abs=4)
        crops = [sample.crops[which, p][..., :2].reshape(-1, 2).mean(axis=0) for which in range(2)]
        assert crops[0] == pytest.approx(crops[1], abs=4)
        assert crops[0] == pytest.approx(means[0], abs=4)


@pytest.mark.usefixtures("plain")
def test_both_views_share_the_flip_and_half_of_the_samples_are_flipped() -> None:
    directions = []
    for i in range(200):
        sample = views.make_views(coordinate_image(), None, SETTINGS, sample_random(0, 0, i))
        left_to_right = [bool(view[5, -1, 0] > view[5, 0, 0]) for view in sample.images]
        assert left_to_right[0] == left_to_right[1]
        directions.append(left_to_right[0])
    assert 70 < sum(directions) < 130


def test_a_fixed_size_gives_views_of_that_size() -> None:
    settings = SETTINGS.model_copy(update={"size": (64, 80)})
    sample = views.make_views(coordinate_image(), None, settings, sample_random(0, 0, 0))
    assert [view.shape for view in sample.images] == [(64, 80, 3)] * 2


def test_regions_begin_with_the_intersection_then_keep_the_stored_order() -> None:
    inner = (10.0, 10.0, 110.0, 110.0)
    proposals = np.asarray(
        [
            [0, 0, 15, 15],  # what lies inside is too small
            [50, 50, 200, 200],  # clipped
            [20, 20, 60, 60],
            [300, 300, 400, 400],  # outside
            [30, 30, 90, 90],
        ],
        dtype=np.float32,
    )
    regions = views.choose_regions(proposals, inner, 4, sample_random(0, 0, 0))
    assert regions.tolist() == [list(inner), [50, 50, 110, 110], [20, 20, 60, 60], [30, 30, 90, 90]]
    assert views.choose_regions(proposals, inner, 1, sample_random(0, 0, 0)).tolist() == [list(inner)]


def test_missing_regions_are_repeated_with_jitter_and_stay_inside() -> None:
    inner = (10.0, 10.0, 110.0, 110.0)
    proposals = np.asarray([[10, 10, 60, 60]], dtype=np.float32)
    for i in range(50):
        regions = views.choose_regions(proposals, inner, 10, sample_random(0, 0, i))
        repeated = regions[2:]
        assert len(regions) == 10
        assert regions.min() >= 10
        assert regions.max() <= 110
        assert np.abs(repeated - proposals).max() <= 5 + 1e-4  # 10 % of its side
        assert len(np.unique(repeated, axis=0)) == 8
        assert (repeated[:, 2:] - repeated[:, :2]).min() >= 40


def test_without_any_usable_proposal_regions_are_random_ones_in_the_intersection() -> None:
    inner = (10.0, 10.0, 110.0, 60.0)
    for proposals in (None, np.zeros((0, 4), np.float32), np.asarray([[500, 500, 600, 600]], np.float32)):
        regions = views.choose_regions(proposals, inner, 10, sample_random(0, 0, 0))
        sides = regions[1:, 2:] - regions[1:, :2]
        assert regions[:, 0].min() >= 10
        assert regions[:, 2].max() <= 110
        assert regions[:, 3].max() <= 60
        assert (sides.prod(axis=1) >= 0.0499 * 5000).all()
        assert len(np.unique(regions, axis=0)) == 10


def test_random_boxes_keep_to_area_and_aspect() -> None:
    boxes = np.concatenate([views.random_boxes(sample_random(0, 0, i)) for i in range(50)])
    sides = boxes[:, 2:] - boxes[:, :2]
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    assert sides.prod(axis=1).min() >= 0.05
    assert (sides.max(axis=1) / sides.min(axis=1)).max() <= 8
    assert views.random_boxes(sample_random(0, 0, 0), draws=1).shape == (1, 4)


def test_a_sample_is_a_function_of_its_numbers() -> None:
    image = coordinate_image()
    samples = [views.make_views(image, None, SETTINGS, sample_random(3, 1, i)) for i in (5, 5, 6)]
    same, other = (
        [np.array_equal(a, b) for a, b in zip(fields(samples[0]), fields(samples[k]), strict=True)] for k in (1, 2)
    )
    assert all(same)
    assert not any(other)


def fields(sample: views.ViewSample) -> list[np.ndarray]:
    return [*sample.images, *(getattr(sample, field.name) for field in dataclasses.fields(sample)[1:])]


def photo() -> np.ndarray:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((48, 40), Image.Resampling.BICUBIC)
    return np.asarray(smooth)


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.4])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (photometric.adjust_brightness, functional.adjust_brightness),
        (photometric.adjust_contrast, functional.adjust_contrast),
        (photometric.adjust_saturation, functional.adjust_saturation),
    ],
)
def test_colour_jitter_is_torchvisions(ours, theirs, factor: float) -> None:  # type: ignore[no-untyped-def]
    image = photo()
    expected = np.asarray(theirs(Image.fromarray(image), factor)).astype(int)
    assert np.abs(ours(image, factor).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("turn", [-0.1, -0.03, 0.07])
def test_hue_is_torchvisions(turn: float) -> None:
    image = photo()
    expected = functional.adjust_hue(torch.from_numpy(image.copy()).permute(2, 0, 1), turn).permute(1, 2, 0).numpy()
    difference = np.abs(photometric.adjust_hue(image, turn).astype(int) - expected.astype(int))
    assert difference.mean() < 2
    assert difference.max() <= 12


def test_augmentation_uses_its_probabilities_and_leaves_its_input_alone() -> None:
    image = photo()
    before = image.copy()
    results = [photometric.augment(image, sample_random(0, 0, i)) for i in range(400)]
    gray = sum(bool((result.max(axis=2) == result.min(axis=2)).all()) for result in results)
    untouched = sum(np.array_equal(result, before) for result in results)
    assert np.array_equal(image, before)
    assert 50 <= gray <= 110  # .2
    assert 15 <= untouched <= 55  # .2 · .8 · .5 = .08
