"""Properties of every pretraining method over every detector.

Symmetries, which parameters train, and error messages.
"""

from __future__ import annotations

import dataclasses
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siamdetr.models.backbone.pyramid import Maps, as_levels
from siamdetr.models.criterion.layer_losses import weighted_sum
from siamdetr.models.detector import Detector
from siamdetr.models.heads import each_head
from siamdetr.pretext.batches import RegionBatch, ViewBatch
from siamdetr.pretext.common import Pretext, crop_features, pretext_settings
from siamdetr.pretext.detreg import DETReg
from siamdetr.pretext.prompt import group_mask
from siamdetr.pretext.registry import PRETEXTS
from siamdetr.pretext.updetr import UPDETR
from siamdetr.settings.detector import DetectorSettings
from siamdetr.settings.pretext import DETRegSettings, SiameseSettings, UPDETRSettings
from siamdetr.settings.registry import DETECTORS
from siamdetr.structures.targets import Targets, region_targets

REGIONS = 3
SETTINGS: dict[str, Any] = {
    "siamese": SiameseSettings(num_regions=REGIONS, box_jitter=0.0, weight_global=0.0),
    "updetr": UPDETRSettings(num_regions=REGIONS, mask_ratio=0.0),
    "detreg": DETRegSettings(num_regions=REGIONS, embedding="last"),
}
EACH = list(product(DETECTORS, PRETEXTS))
Batch = ViewBatch | RegionBatch


def tiny(variant: str, **changes: Any) -> Detector:
    """Its boxes differ between queries; a deformable one has a pyramid."""
    torch.manual_seed(0)
    values = {
        "variant": variant, "backbone": "test_resnet.r160_in1k", "num_queries": 6, "dim": 32, "heads": 4, "dropout": 0.0,
        "encoder_layers": 1, "decoder_layers": 2, "feedforward": 32, "levels": 4 if DETECTORS[variant].multi_scale else 1,
    }  # fmt: skip
    detector = Detector(pretext_settings(DetectorSettings.model_validate(values | changes)))
    for head in each_head(detector.box_head):
        torch.nn.init.normal_(head.layers[-1].weight, std=0.3)  # type: ignore[union-attr,index,arg-type]
    return detector


def pretext(variant: str, method: str) -> Pretext:
    return PRETEXTS[method].build(tiny(variant), SETTINGS[method])


def batch_of(method: str, images: int, *, height: int = 64, width: int = 96) -> Batch:
    """The first image is narrower than the canvas; regions of all sizes."""
    many = 2 * images if method == "siamese" else images
    make = torch.Generator().manual_seed(1)
    padding = torch.zeros(many, height, width, dtype=torch.bool)
    padding[0, :, width - 32 :] = True
    pixels = torch.randn(many, 3, height, width, generator=make).masked_fill(padding[:, None], 0)
    sides = torch.rand(many, REGIONS, 2, generator=make) * 0.3 + 0.1
    boxes = torch.cat([torch.rand(many, REGIONS, 2, generator=make) * 0.5 + 0.25, sides], -1)
    crops = torch.randn(many, REGIONS, 3, 32, 32, generator=make)
    if method != "siamese":
        return RegionBatch(pixels, padding, region_targets(boxes.flatten(0, 1), [REGIONS] * many), crops.flatten(0, 1))
    sizes = torch.tensor([height, width]).repeat(many, 1)
    sizes[0, 1] -= 32
    return ViewBatch(pixels, padding, boxes, sizes, crops)


def select(batch: Batch, images: list[int]) -> Batch:
    """The images (for view pairs: the pairs), with all that is theirs."""
    if isinstance(batch, ViewBatch):
        rows = [*images, *(image + len(batch.images) // 2 for image in images)]
        return ViewBatch(*(getattr(batch, field.name)[rows] for field in dataclasses.fields(batch)))
    starts = [sum(batch.targets.counts[:image]) for image in images]
    counts = [batch.targets.counts[image] for image in images]
    regions = [start + i for start, count in zip(starts, counts, strict=True) for i in range(count)]
    targets = Targets(batch.targets.boxes[regions], batch.targets.labels[regions], tuple(counts))
    return RegionBatch(batch.images[images], batch.padding[images], targets, batch.crops[regions])


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize(("variant", "method"), EACH)
@torch.no_grad()
def test_permuting_the_batch_permutes_predictions_and_keeps_losses(variant: str, method: str) -> None:
    model, batch, order = pretext(variant, method), batch_of(method, 3), [2, 0, 1]
    (before, _), (after, _) = model.predict(batch), model.predict(select(batch, order))  # type: ignore[arg-type]
    rows = [*order, *(3 + i for i in order)] if method == "siamese" else order
    close(after.boxes, before.boxes[:, rows])
    close(after.logits, before.logits[:, rows], 1e-4)
    assert (before.logits[:, 0] - before.logits[:, 1]).abs().max() > 1e-3
    losses, permuted = model(batch), model(select(batch, order))
    for name in model.loss_weights:
        torch.testing.assert_close(permuted[name], losses[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("variant", "method"), EACH)
@torch.no_grad()
def test_batched_equals_single(variant: str, method: str) -> None:
    model, batch = pretext(variant, method), batch_of(method, 2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # of RT-DETR's encoder, whose statistics are otherwise the batch's
            module.eval()
    together = model(batch)
    single = [model(select(batch, [image])) for image in range(2)]
    for name in model.loss_weights:
        mean = (single[0][name] + single[1][name]) / 2
        torch.testing.assert_close(together[name], mean, rtol=1e-3, atol=1e-5, msg=name)


class OnWiderCanvas:
    """A teacher whose feature maps are one cell larger than the image.

    The further cell has the values that RoIAlign assumes there.
    """

    def __init__(self, model: Pretext, shape: tuple[int, int]) -> None:
        self.teacher, self.shape = model.teacher, shape

    def __call__(self, images: Tensor) -> Maps:
        if tuple(images.shape[2:]) != self.shape:
            return self.teacher(images)  # crops
        maps = [
            torch.nn.functional.pad(level, (0, 1, 0, 1), mode="replicate") for level in as_levels(self.teacher(images))
        ]
        return maps[0] if len(maps) == 1 else tuple(maps)


@pytest.mark.parametrize("method", PRETEXTS)
@pytest.mark.parametrize("variant", [variant for variant, entry in DETECTORS.items() if not entry.multi_scale])
@torch.no_grad()
def test_more_padding_changes_nothing(variant: str, method: str) -> None:
    """With one level; with several, a group norm sees the padding, as in the official code."""
    model, batch = pretext(variant, method), batch_of(method, 2)
    if isinstance(batch, ViewBatch):  # RoIAlign enlarges small regions to a cell, which here must not leave the image
        batch = dataclasses.replace(batch, boxes=batch.boxes * 0.5)
    before, _ = model.predict(batch)  # type: ignore[arg-type]
    wider = torch.ones(len(batch.images), 96, 128, dtype=torch.bool)
    wider[:, :64, :96] = batch.padding
    model.teacher = OnWiderCanvas(model, (64, 96))  # type: ignore[assignment]
    after, _ = model.predict(dataclasses.replace(batch, padding=wider))  # type: ignore[arg-type]
    close(after.boxes, before.boxes)
    close(after.logits, before.logits, 1e-4)


@pytest.mark.parametrize(("variant", "method"), EACH)
def test_all_but_the_backbone_trains_and_stays_finite_on_flat_and_repeated_regions(variant: str, method: str) -> None:
    model, batch = pretext(variant, method).train(), batch_of(method, 2)
    if isinstance(batch, ViewBatch):
        boxes = batch.boxes[:, :1].repeat(1, REGIONS, 1)
        boxes[1, :, 2:] = 0.0
        batch = dataclasses.replace(batch, boxes=boxes)
    else:
        boxes = batch.targets.boxes[:1].repeat(len(batch.targets.boxes), 1)
        boxes[1, 2:] = 0.0
        batch = dataclasses.replace(batch, targets=dataclasses.replace(batch.targets, boxes=boxes))
    losses = model(batch)
    assert set(model.loss_weights) <= set(losses)
    assert not any("_dn" in name for name in losses)
    weighted_sum(losses, model.loss_weights).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("detector.backbone."):
            assert not parameter.requires_grad, name
        else:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
    monitors = {name for name in losses if name not in model.loss_weights}
    assert {"monitor_query_std", "monitor_matched_iou"} <= monitors
    assert not any(losses[name].requires_grad for name in monitors)
    assert not any(module.training for module in model.detector.backbone.modules())


@pytest.mark.parametrize("counts", [(REGIONS, 0), (0, 0)])
@pytest.mark.parametrize("variant", DETECTORS)
def test_an_image_without_proposals_trains(variant: str, counts: tuple[int, int]) -> None:
    """DETReg; the data sets of the other methods always have their number of regions."""
    model, batch = pretext(variant, "detreg").train(), batch_of("detreg", 2)
    assert isinstance(batch, RegionBatch)
    some = sum(counts)
    batch = dataclasses.replace(
        batch, targets=region_targets(batch.targets.boxes[:some], counts), crops=batch.crops[:some]
    )
    losses = model(batch)
    total = weighted_sum(losses, model.loss_weights)
    total.backward()
    assert torch.isfinite(total)
    assert float(losses["loss_embedding"].detach()) == 0 or some > 0
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(("num_queries", "num_groups"), [(6, 3), (12, 2), (20, 10), (8, 8), (5, 1)])
def test_queries_of_one_patch_see_each_other_and_nobody_else(num_queries: int, num_groups: int) -> None:
    """For any number of patches, also where they exceed the queries per patch."""
    hidden = group_mask(num_queries, num_groups, torch.device("cpu"))
    each = num_queries // num_groups
    expected = torch.block_diag(*[torch.ones(each, each)] * num_groups) == 0
    assert torch.equal(hidden, expected)
    assert not hidden.all(1).any()


@pytest.mark.parametrize("variant", DETECTORS)
@torch.no_grad()
def test_a_patch_of_updetr_reaches_its_own_queries_only(variant: str) -> None:
    model, batch = pretext(variant, "updetr").eval(), batch_of("updetr", 2)
    assert isinstance(batch, RegionBatch)
    before, _ = model.predict(batch)  # type: ignore[arg-type]
    crops = batch.crops.clone()
    crops[1] *= -1  # the second patch of the first image
    after, _ = model.predict(dataclasses.replace(batch, crops=crops))  # type: ignore[arg-type]
    moved = (after.logits - before.logits).abs().amax((0, 3)) > 1e-7  # [B, Q]
    assert moved.tolist() == [[False, False, True, True, False, False], [False] * 6]


@torch.no_grad()
def test_a_share_of_the_queries_is_not_told_its_patch_in_training_alone() -> None:
    settings = UPDETRSettings(num_regions=REGIONS, mask_ratio=0.5)
    model, batch = UPDETR(tiny("vanilla"), settings), batch_of("updetr", 2)
    assert isinstance(batch, RegionBatch)
    told: list[Tensor] = []
    model.detector.decoder.register_forward_pre_hook(lambda _, inputs: told.append(inputs[0].position))
    torch.manual_seed(0)
    for mode in (True, False):
        model.train(mode).predict(batch)
    learned = model.detector.queries(2).position
    assert learned is not None
    untold = [(position == learned).all(-1) for position in told]
    assert 0 < int(untold[0].sum()) < 12
    assert int(untold[1].sum()) == 0
    keep = torch.tensor([[True, False] * 3] * 2)
    model.train().predict(batch, keep)
    assert torch.equal((told[-1] == learned).all(-1), ~keep)


@pytest.mark.parametrize("method", ["updetr", "detreg"])
def test_no_weight_no_head_no_loss(method: str) -> None:
    name = {"updetr": "feature", "detreg": "embedding"}[method]
    model = PRETEXTS[method].build(
        tiny("conditional"), SETTINGS[method].model_copy(update={f"weight_{name}": 0.0, "embedding": "projection"})
    )
    losses = model(batch_of(method, 1))
    assert not any(key.startswith((f"{name}_head", "projection")) for key in model.state_dict())
    assert not any(key.startswith(f"loss_{name}") for key in (*losses, *model.loss_weights))
    assert "monitor_query_std" not in losses  # one image cannot be compared with another


@torch.no_grad()
def test_the_embedding_of_c3_is_the_map_of_stride_8_whether_or_not_the_detector_sees_it() -> None:
    crops = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for variant, levels in (("vanilla", 1), ("deformable", 4)):
        detector = tiny(variant, backbone="resnet18", levels=levels)
        model = DETReg(detector, DETRegSettings(num_regions=REGIONS))
        with_three = tiny("deformable", backbone="resnet18", levels=3).backbone
        with_three.load_state_dict(detector.backbone.state_dict())
        expected = with_three(crops)[0].mean((2, 3))
        close(crop_features(model.teacher.stride8, crops, at_once=2), expected, 1e-4)
        assert model.embedding_head is not None
        assert model.embedding_head.layers[-1].out_features == 128


def test_the_projected_embedding_is_a_unit_vector() -> None:
    model = DETReg(tiny("conditional"), DETRegSettings(num_regions=REGIONS, embedding="projection"))
    batch = batch_of("detreg", 2)
    assert isinstance(batch, RegionBatch)
    _, wanted = model.predict(batch)
    assert wanted is not None
    assert wanted.shape == (2 * REGIONS, 128)
    close(wanted.norm(dim=-1), torch.ones(2 * REGIONS))
    assert not model.train().projection.training  # type: ignore[union-attr]


def test_focal_detreg_trains_and_knows_its_object() -> None:
    settings = DETRegSettings(num_regions=REGIONS, embedding="last", classifier="focal")
    shape = tiny("deformable").settings
    detector = Detector(pretext_settings(shape, "focal"))
    model = DETReg(detector, settings)
    weighted_sum(model(batch_of("detreg", 2)), model.loss_weights).backward()
    head = each_head(detector.class_head)[0]
    assert head.out_features == 2
    assert head.weight.grad is not None


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(
        ValueError, match="UPDETR: 6 queries do not divide among 4 regions; choose num_queries a multip"
    ):
        UPDETR(tiny("vanilla"), UPDETRSettings(num_regions=4))
    with pytest.raises(ValueError, match="DETReg: 6 queries cannot answer for 30 regions; choose num_regions at most"):
        DETReg(tiny("vanilla"), DETRegSettings())
    with pytest.raises(
        ValueError, match=r"embedding 'c3' needs a map of stride 8, got backbone 'test_resnet.* set embed"
    ):
        DETReg(tiny("vanilla"), DETRegSettings(num_regions=3))
    one_class = tiny("vanilla").settings.model_copy(update={"num_classes": 1})
    with pytest.raises(
        ValueError, match=r"expected a class head that knows label 1, an object, got 1 class; build the"
    ):
        DETReg(Detector(one_class), DETRegSettings(num_regions=3, embedding="last"))
    batch = batch_of("updetr", 2)
    assert isinstance(batch, RegionBatch)
    less = dataclasses.replace(batch, targets=region_targets(batch.targets.boxes[:5], (3, 2)), crops=batch.crops[:5])
    with pytest.raises(
        ValueError, match="UPDETR: expected 3 patches an image, got 2; give the data set and the pretext"
    ):
        pretext("vanilla", "updetr")(less)
    with pytest.raises(ValueError, match="pre_norm: only the variant 'vanilla' has such a setting, not 'conditional'"):
        DetectorSettings(variant="conditional", pre_norm=True)
