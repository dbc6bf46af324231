"""Siamese pretraining beyond the golden cases.

Symmetries, which parameters train, odd sizes, and error messages.
"""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from siamdetr.models.backbone.body import Backbone, takes_blocked_layout
from siamdetr.models.criterion.layer_losses import weighted_sum
from siamdetr.models.detector import Detector, Queries
from siamdetr.pretext.batches import ViewBatch
from siamdetr.pretext.common import FrozenTeacher, cosine_distance, jitter_boxes, pretext_settings, region_features
from siamdetr.pretext.prompt import condition_queries
from siamdetr.pretext.registry import PRETEXTS
from siamdetr.pretext.siamese import SiameseDETR
from siamdetr.settings.detector import DetectorSettings
from siamdetr.settings.pretext import SiameseSettings

VARIANTS: list[str] = ["vanilla", "conditional"]


def tiny(variant: str = "conditional", *, queries: int = 6, layers: int = 2, dropout: float = 0.0) -> DetectorSettings:
    return pretext_settings(
        DetectorSettings(
            variant=variant,
            backbone="resnet18",
            num_queries=queries,
            dim=32,
            heads=4,
            encoder_layers=1,
            decoder_layers=layers,
            feedforward=48,
            dropout=dropout,
        )
    )


def pretext(
    variant: str = "conditional",
    *,
    regions: int = 3,
    weight_global: float = 1.0,
    weight_region: float = 1.0,
    queries: int = 6,
    layers: int = 2,
) -> SiameseDETR:
    torch.manual_seed(0)
    settings = SiameseSettings(
        num_regions=regions, box_jitter=0.0, weight_global=weight_global, weight_region=weight_region
    )
    model = SiameseDETR(Detector(tiny(variant, queries=queries, layers=layers)), settings)
    torch.nn.init.normal_(model.detector.box_head.layers[-1].weight, std=0.2)  # boxes that differ between queries
    return model


def views(samples: int = 2, *, regions: int = 3, height: int = 64, width: int = 96, crop: int = 32) -> ViewBatch:
    generator = torch.Generator().manual_seed(1)
    padding = torch.zeros(2 * samples, height, width, dtype=torch.bool)
    padding[0, :, width - 32 :] = True
    sizes = torch.tensor([height, width]).repeat(2 * samples, 1)
    sizes[0, 1] -= 32
    images = torch.randn(2 * samples, 3, height, width, generator=generator).masked_fill(padding[:, None], 0)
    sides = torch.rand(2 * samples, regions, 2, generator=generator) * 0.3 + 0.1
    return ViewBatch(
        images=images,
        padding=padding,
        boxes=torch.cat([torch.rand(2 * samples, regions, 2, generator=generator) * 0.5 + 0.25, sides], -1),
        sizes=sizes,
        crops=torch.randn(2 * samples, regions, 3, crop, crop, generator=generator),
    )


def select(batch: ViewBatch, samples: list[int]) -> ViewBatch:
    """Both views of the given samples."""
    rows = [*samples, *(sample + len(batch.images) // 2 for sample in samples)]
    return ViewBatch(batch.images[rows], batch.padding[rows], batch.boxes[rows], batch.sizes[rows], batch.crops[rows])


@pytest.mark.parametrize("variant", VARIANTS)
def test_permuting_the_batch_permutes_predictions_and_keeps_losses(variant: str) -> None:
    model, batch, order = pretext(variant), views(3), [2, 0, 1]
    with torch.no_grad():
        (before, _), (after, _) = model.predict(batch), model.predict(select(batch, order))
        rows = [*order, *(3 + i for i in order)]
        torch.testing.assert_close(after.boxes, before.boxes[:, rows], rtol=0, atol=1e-5)
        losses, permuted = model(batch), model(select(batch, order))
    for name in model.loss_weights:
        torch.testing.assert_close(permuted[name], losses[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_batched_equals_single(variant: str) -> None:
    model, batch = pretext(variant, weight_global=0.0), views(2)
    with torch.no_grad():
        together = model(batch)
        single = [model(select(batch, [sample])) for sample in range(2)]
    for name in model.loss_weights:
        mean = (single[0][name] + single[1][name]) / 2
        torch.testing.assert_close(together[name], mean, rtol=1e-4, atol=1e-5, msg=name)


def test_exchanging_the_views_keeps_the_losses() -> None:
    model, batch = pretext(), views(3)
    back = [3, 4, 5, 0, 1, 2]
    swapped = ViewBatch(*(getattr(batch, field.name)[back] for field in dataclasses.fields(batch)))
    with torch.no_grad():
        losses, exchanged = model(batch), model(swapped)
    for name in model.loss_weights:
        torch.testing.assert_close(exchanged[name], losses[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_but_the_backbone_trains(variant: str) -> None:
    model = pretext(variant)
    weighted_sum(model(views()), model.loss_weights).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("detector.backbone."):
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
        else:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def test_the_backbone_stays_in_eval_mode_and_the_rest_does_not() -> None:
    model = pretext().train()
    assert not any(module.training for module in model.detector.backbone.modules())
    assert model.detector.encoder.training


def test_no_weight_no_head_no_loss() -> None:
    model = pretext(weight_global=0.0, weight_region=0.0)
    losses = model(views(1))
    assert not any(name.startswith(("global_head", "feature_head")) for name in model.state_dict())
    assert set(model.loss_weights) <= set(losses)
    assert not any(name.startswith(("loss_global", "loss_region")) for name in (*losses, *model.loss_weights))


def test_monitors_are_detached_and_have_no_weight() -> None:
    model = pretext()
    losses = model(views())
    monitors = {name for name in losses if name not in model.loss_weights}
    assert {"monitor_query_std", "monitor_view_cosine", "monitor_matched_iou"} <= monitors
    assert not any(losses[name].requires_grad for name in monitors)
    assert 0 <= float(losses["monitor_matched_iou"]) <= 1
    assert abs(float(losses["monitor_view_cosine"])) <= 1 + 1e-6


def test_a_step_makes_one_transfer_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    transfers: list[tuple[int, ...]] = []
    to_host = Tensor.cpu

    def counted(tensor: Tensor) -> Tensor:
        transfers.append(tuple(tensor.shape))
        return to_host(tensor)

    model, batch = pretext(), views(2)
    model(batch)  # folds the teacher
    monkeypatch.setattr(Tensor, "cpu", counted)
    model(batch)
    assert transfers == [(2, 4 * 3, 6)]  # layers, regions of both directions, queries


@pytest.mark.parametrize(("size", "crop"), [((33, 65), 16), ((128, 40), 48)])
@pytest.mark.parametrize(("queries", "layers", "regions"), [(4, 1, 4), (10, 3, 1)])
def test_other_sizes_queries_layers_and_regions_run(
    size: tuple[int, int], crop: int, queries: int, layers: int, regions: int
) -> None:
    model = pretext(queries=queries, layers=layers, regions=regions)
    batch = views(2, regions=regions, height=size[0], width=size[1], crop=crop)
    losses = model(batch)
    assert sum(name.startswith("loss_class") for name in losses) == layers
    assert all(torch.isfinite(value) for value in losses.values())


def test_repeated_and_flat_regions_give_finite_losses_and_gradients() -> None:
    """An image with one proposal repeats it; a region at the border may lose its width."""
    model, batch = pretext(), views(2)
    boxes = batch.boxes[:, :1].repeat(1, 3, 1)
    boxes[1, :, 2:] = 0.0
    total = weighted_sum(model(dataclasses.replace(batch, boxes=boxes)), model.loss_weights)
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_bf16_losses_are_near_single_precision() -> None:
    model, batch = pretext(), views(2)
    with torch.no_grad():
        single = model(batch)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(batch)
    assert half["loss_region"].dtype == torch.float32
    torch.testing.assert_close(half["loss_region"], single["loss_region"], rtol=0.05, atol=0.05)


def test_the_teacher_is_the_backbone_and_follows_its_weights() -> None:
    model, images = pretext(), views().images
    torch.testing.assert_close(model.teacher(images), model.detector.backbone(images), rtol=1e-4, atol=1e-4)
    state = copy.deepcopy(model.detector.backbone.state_dict())
    model.detector.backbone.load_state_dict({name: value * 0.9 for name, value in state.items()})
    torch.testing.assert_close(model.teacher(images), model.detector.backbone(images), rtol=1e-4, atol=1e-4)
    assert not any("teacher" in name for name in model.state_dict())


@torch.no_grad()
def test_the_teacher_answers_alike_in_the_layout_of_onednn() -> None:
    torch.manual_seed(0)
    backbone = Backbone("resnet50", pyramid=True).eval()
    images = torch.randn(2, 3, 64, 97)
    assert takes_blocked_layout(backbone, images, images.dtype)
    assert not takes_blocked_layout(backbone, images, torch.bfloat16)
    teacher, expected = FrozenTeacher(backbone), backbone(images)
    for found, level in zip(teacher(images), expected, strict=True):
        torch.testing.assert_close(found, level, rtol=1e-4, atol=1e-4 * float(level.max()))
    torch.testing.assert_close(teacher.stride8(images), expected[0], rtol=1e-4, atol=1e-4 * float(expected[0].max()))


def test_the_teacher_is_folded_once() -> None:
    teacher = FrozenTeacher(pretext().detector.backbone)
    teacher(views().images)
    folded = teacher.folded
    teacher(views().images)
    assert teacher.folded is folded


def test_jitter_is_bell_shaped_bounded_and_inside_the_image() -> None:
    boxes = torch.tensor([0.5, 0.5, 0.4, 0.2]).repeat(4000, 1)
    moved = jitter_boxes(boxes, 0.1, torch.Generator().manual_seed(0))
    left = (moved[:, 0] - moved[:, 2] / 2 - 0.3) / 0.4
    assert float(left.abs().max()) < 0.1
    assert float(left.std()) == pytest.approx(0.042, abs=0.002)
    assert float(left.mean()) == pytest.approx(0, abs=0.002)
    edge = jitter_boxes(torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(50, 1), 0.1, torch.Generator().manual_seed(0))
    assert ((edge[:, :2] - edge[:, 2:] / 2 >= -1e-6) & (edge[:, :2] + edge[:, 2:] / 2 <= 1 + 1e-6)).all()


def test_jitter_follows_its_generator_and_is_off_in_eval_mode() -> None:
    model, batch = pretext(), views()
    model.box_jitter = 0.1
    with torch.no_grad():
        a, b, other = (model(batch, torch.Generator().manual_seed(seed))["loss_bbox"] for seed in (1, 1, 2))
        model.eval()
        c, d = model(batch)["loss_bbox"], model(batch)["loss_bbox"]
    assert a == b
    assert a != other
    assert c == d


def test_a_region_of_one_colour_has_that_feature() -> None:
    features = torch.arange(4.0).view(1, 1, 2, 2).repeat_interleave(8, 2).repeat_interleave(8, 3)  # four quarters
    boxes = torch.tensor([[[0.75, 0.25, 0.25, 0.25]]])
    assert region_features(features, boxes, torch.tensor([[512, 512]]), 32).item() == pytest.approx(1.0)


def test_queries_without_position_take_the_region_into_their_content() -> None:
    regions = torch.randn(1, 2, 3)
    given = condition_queries(Queries(content=torch.zeros(1, 4, 3), position=None), regions)
    assert given.position is None
    torch.testing.assert_close(given.content, regions[:, [0, 0, 1, 1]])


def test_cosine_distance_runs_from_zero_to_four() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    b = torch.tensor([[3.0, 0.0], [5.0, 0.0], [-1.0, -1.0]])
    torch.testing.assert_close(cosine_distance(a, b), torch.tensor([0.0, 2.0, 4.0]))


def test_the_table_of_pretexts_has_them_by_name() -> None:
    assert list(PRETEXTS) == ["siamese", "updetr", "detreg"]
    assert PRETEXTS["siamese"].build is SiameseDETR


def test_queries_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="6 queries do not divide among 4 regions; choose num_queries a multiple"):
        SiameseDETR(Detector(tiny()), SiameseSettings(num_regions=4))


def test_another_class_head_is_refused() -> None:
    detector = Detector(tiny().model_copy(update={"classifier": "focal", "num_classes": 20}))
    with pytest.raises(
        ValueError, match=r"softmax classifier of 2 classes, got focal of 20; build it from pretext_settings"
    ):
        SiameseDETR(detector, SiameseSettings(num_regions=3))


def test_another_number_of_regions_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 3 regions a view, got 2; give the data set and the pretext"):
        pretext()(views(regions=2))


def test_one_image_has_no_batch_statistics() -> None:
    with pytest.raises(
        ValueError, match="at least 2 images a process, got 1; raise the batch size or set weight_global=0"
    ):
        pretext()(views(1))
