"""Queries conditioned on regions: who may be matched, who gets no region, and what a detector keeps.

Also whether the detector uses the regions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from siamdetr.images.randomness import sample_random
from siamdetr.models.criterion.matcher import match
from siamdetr.models.detector import Detector, Outputs
from siamdetr.pretext.batches import ViewBatch
from siamdetr.pretext.common import pretext_settings
from siamdetr.pretext.prompt import RegionPrompt, condition_queries, similar_places
from siamdetr.pretext.siamese import SiameseDETR
from siamdetr.pretext.views import choose_regions
from siamdetr.settings.detector import DetectorSettings, LossSettings
from siamdetr.settings.pretext import PromptSettings, SiameseSettings
from siamdetr.structures.model import Queries
from siamdetr.structures.targets import region_targets

REGIONS = 3


def detector(variant: str = "deformable") -> Detector:
    torch.manual_seed(0)
    values = {
        "variant": variant, "backbone": "test_resnet.r160_in1k", "num_queries": 6, "dim": 32, "heads": 4, "dropout": 0.0,
        "encoder_layers": 1, "decoder_layers": 2, "feedforward": 32, "levels": 3 if "deformable" in variant else 1,
    }  # fmt: skip
    return Detector(pretext_settings(DetectorSettings.model_validate(values)))


def siamese(variant: str = "deformable", **changes: Any) -> SiameseDETR:
    settings = SiameseSettings(num_regions=REGIONS, weight_global=0.0, weight_region=0.0, box_jitter=0.0, **changes)
    return SiameseDETR(detector(variant), settings)


def views(images: int = 2) -> ViewBatch:
    make = torch.Generator().manual_seed(1)
    boxes = torch.cat(
        [torch.rand(2 * images, REGIONS, 2, generator=make) * 0.4 + 0.3, torch.full((2 * images, REGIONS, 2), 0.2)], -1
    )
    return ViewBatch(
        images=torch.randn(2 * images, 3, 64, 64, generator=make),
        padding=torch.zeros(2 * images, 64, 64, dtype=torch.bool),
        boxes=boxes,
        sizes=torch.full((2 * images, 2), 64),
        crops=torch.randn(2 * images, REGIONS, 3, 32, 32, generator=make),
    )


def outputs(images: int, queries: int) -> Outputs:
    make = torch.Generator().manual_seed(2)
    boxes = torch.rand(2, images, queries, 4, generator=make) * 0.4 + 0.3
    return Outputs(torch.randn(2, images, queries, 3, generator=make), boxes, torch.zeros(2, images, queries, 8))


def test_matching_in_a_group_assigns_a_region_to_a_query_that_was_told_it() -> None:
    prompt, found = RegionPrompt(PromptSettings(num_regions=REGIONS, matching="group"), 8), outputs(4, 6)
    targets = region_targets(torch.rand(4 * REGIONS, 4) * 0.4 + 0.3, [REGIONS] * 4)
    losses = LossSettings()
    free = match(found.logits, found.boxes, targets, losses, "softmax")
    grouped = match(found.logits, found.boxes, targets, losses, "softmax", allowed=prompt.allowed(found))
    assert (grouped.query // 2 == grouped.target % REGIONS).all()
    assert float(prompt.told_share(found, grouped)["monitor_told_share"]) == 1
    assert 0 <= float(prompt.told_share(found, free)["monitor_told_share"]) < 1
    assert RegionPrompt(PromptSettings(num_regions=REGIONS), 8).allowed(found) is None  # officially all may


def test_a_query_told_nothing_may_answer_for_any_region_and_does_not_count_as_told() -> None:
    prompt, found = RegionPrompt(PromptSettings(num_regions=REGIONS, matching="group"), 8), outputs(2, 6)
    told = torch.zeros(2, 6, dtype=torch.bool)
    allowed = prompt.allowed(found, told)
    assert allowed is not None
    assert allowed.all()
    targets = region_targets(torch.rand(2 * REGIONS, 4) * 0.4 + 0.3, [REGIONS] * 2)
    matches = match(found.logits, found.boxes, targets, LossSettings(), "softmax", allowed=allowed)
    assert float(prompt.told_share(found, matches, told)["monitor_told_share"]) == 0


def test_the_region_goes_where_it_is_asked_for() -> None:
    queries = Queries(content=torch.zeros(1, 6, 4), position=torch.zeros(1, 6, 4))
    regions = torch.arange(3.0)[None, :, None].expand(1, 3, 4) + 1
    in_position, in_content = condition_queries(queries, regions), condition_queries(queries, regions, content=True)
    assert in_position.position is not None
    assert in_position.position[0, :, 0].tolist() == in_content.content[0, :, 0].tolist() == [1, 1, 2, 2, 3, 3]
    assert not in_position.content.any()
    assert not in_content.position.any()  # type: ignore[union-attr]


def test_a_share_of_the_queries_is_told_nothing_or_the_mean_region() -> None:
    regions = torch.randn(4, REGIONS, 8)
    queries = Queries(content=torch.zeros(4, 6, 8), position=None)
    for fold in (False, True):
        prompt = RegionPrompt(PromptSettings(num_regions=REGIONS, mask_ratio=0.5, fold_mean=fold), 8).train()
        told = prompt.draw(queries)
        assert told is not None
        assert told.any()
        assert not told.all()
        content = prompt(queries, regions, told).content
        expected = regions.mean((0, 1)) if fold else torch.zeros(8)
        torch.testing.assert_close(content[~told], expected.expand(int((~told).sum()), -1))
    assert prompt.eval().draw(queries) is None


def test_masked_by_image_all_queries_of_an_image_are_told_or_none() -> None:
    prompt = RegionPrompt(PromptSettings(num_regions=REGIONS, mask_ratio=0.5, mask_by="image"), 8).train()
    torch.manual_seed(0)
    told = prompt.draw(Queries(content=torch.zeros(40, 6, 8), position=None))
    assert told is not None
    assert (told.all(1) | ~told.any(1)).all()
    assert 0 < int(told.all(1).sum()) < 40


def test_a_region_that_is_pasted_into_an_image_is_found_where_it_was_pasted() -> None:
    make = torch.Generator().manual_seed(0)
    features, region = torch.randn(2, 16, 12, 12, generator=make), torch.randn(2, 1, 16, generator=make)
    features[0, :, 2:5, 6:9] = region[0, 0, :, None, None]
    features[1, :, 9:12, 0:3] = region[1, 0, :, None, None]
    padding = torch.zeros(2, 96, 96, dtype=torch.bool)
    expected = torch.tensor([[7.5 / 12, 3.5 / 12], [1.5 / 12, 10.5 / 12]])
    torch.testing.assert_close(similar_places(features, padding, region)[:, 0], expected, atol=0.01, rtol=0)


def test_what_is_similar_in_the_padding_is_not_looked_at_and_places_are_fractions_of_the_image() -> None:
    make = torch.Generator().manual_seed(0)
    features, region = torch.randn(1, 16, 8, 8, generator=make), torch.randn(1, 1, 16, generator=make)
    features[0, :, 1:3, 1:3] = features[0, :, 6:8, 6:8] = region[0, 0, :, None, None]
    padding = torch.zeros(1, 64, 64, dtype=torch.bool)
    padding[:, 32:], padding[:, :, 32:] = True, True
    places = similar_places(features, padding, region)
    torch.testing.assert_close(places, torch.tensor([[[0.5, 0.5]]]), atol=0.01, rtol=0)


@pytest.mark.parametrize("variant", ["deformable", "dn_deformable", "dab_deformable", "dab"])
def test_a_told_query_starts_where_its_region_is_and_one_that_is_told_nothing_where_it_has_learned_to(
    variant: str,
) -> None:
    model, batch = siamese(variant, start="similar", conditioning="content"), views()
    features, queries = model.teacher(batch.images), model.detector.queries(4)
    regions = torch.randn(4, REGIONS, sum(model.detector.backbone.channels))
    told = torch.tensor([True, False]).repeat(4, REGIONS)
    learned = model.detector.first_references(queries)
    found = model.prompt.references(model.detector, queries, (features, batch.padding), regions, told)
    assert learned is not None
    assert found is not None
    torch.testing.assert_close(found[:, 1::2], learned[:, 1::2])
    torch.testing.assert_close(found[:, ::2, :2], similar_places(features, batch.padding, regions))
    torch.testing.assert_close(found[..., 2:], learned[..., 2:])


@pytest.mark.parametrize("variant", ["conditional", "vanilla", "dino"])
def test_a_variant_without_references_of_its_own_is_refused_similar_starts(variant: str) -> None:
    with pytest.raises(ValueError, match=f"start='similar'.*{variant}"):
        siamese(variant, start="similar")


@pytest.mark.parametrize("variant", ["deformable", "dn", "dn_deformable", "dab_deformable"])
def test_the_mean_region_is_left_in_the_learned_content(variant: str) -> None:
    """Without regions the detector then equals the one whose queries all have the mean region."""
    model = siamese(variant, conditioning="content", fold_mean=True).train()
    model(views())
    model.eval()
    assert model.prompt.mean is not None
    before = model.detector.queries(1).content.clone()
    width = model.detector.region_width
    after = model.transferred(model.detector).queries(1).content
    torch.testing.assert_close((after - before)[..., :width], model.prompt.mean.expand(1, before.shape[1], -1))


def test_nothing_is_left_where_it_is_not_asked_for() -> None:
    model = siamese()
    before = {name: value.clone() for name, value in model.detector.state_dict().items()}
    assert all(
        torch.equal(value, before[name]) for name, value in model.transferred(model.detector).state_dict().items()
    )
    assert not [name for name in model.state_dict() if name.startswith("prompt.")]  # old checkpoints are read


def test_usage_compares_own_regions_with_those_of_another_image_and_with_none() -> None:
    """A decoder that predicts its region's box uses it; one that ignores it has equal figures."""
    model, batch = siamese(conditioning="content", matching="group").eval(), views()
    found = model.usage(batch)
    assert list(found) == ["regions_own_iou", "regions_other_iou", "regions_none_iou"]
    assert all(0 <= value <= 1 for value in found.values())
    with torch.no_grad():
        model.region_projection.weight.zero_()
        model.region_projection.bias.zero_()
    alike = model.usage(batch)
    assert (
        alike["regions_own_iou"]
        == pytest.approx(alike["regions_other_iou"])
        == pytest.approx(alike["regions_none_iou"])
    )


def test_regions_are_distinct_and_lie_inside_both_views() -> None:
    inner = (0.0, 0.0, 100.0, 100.0)
    proposals = np.asarray(
        [[0, 0, 99, 99], [-90, -90, 60, 60], [10, 10, 40, 40], [11, 10, 41, 40], [60, 60, 90, 90], [70, 5, 95, 30]], np.float32
    )  # fmt: skip

    def chosen(**how: float) -> list[list[float]]:
        return choose_regions(proposals, inner, 4, sample_random(0, 0, 0), **how).tolist()

    assert chosen()[1:] == [[0, 0, 99, 99], [0, 0, 60, 60], [10, 10, 40, 40]]  # official: clipped, near-duplicates
    assert chosen(inside=0.8, distinct=0.7)[1:] == [[10, 10, 40, 40], [60, 60, 90, 90], [70, 5, 95, 30]]


@pytest.mark.parametrize("ratio", [0.0, 0.3])
def test_training_with_all_of_it_gives_gradients_to_what_tells(ratio: float) -> None:
    model = siamese(
        conditioning="content", matching="group", mask_ratio=ratio, fold_mean=True, normalize_features=True
    ).train()
    losses = model(views())
    total: Tensor = sum(losses[name] for name in model.loss_weights if name in losses)  # type: ignore[assignment]
    total.backward()
    assert model.region_projection.weight.grad is not None
    assert model.region_projection.weight.grad.abs().sum() > 0
