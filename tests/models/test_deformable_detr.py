"""Properties of every form of Deformable DETR, alone and in pretraining.

DAB- and DN-DAB-Deformable-DETR included.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.detectors import padded_batch
from helpers.view_batches import chosen
from torch import Tensor, nn

from siamdetr.boxes import xyxy_to_cxcywh
from siamdetr.models.attention import record_attention
from siamdetr.models.backbone.body import Backbone, fold_batchnorm
from siamdetr.models.criterion.layer_losses import weighted_sum
from siamdetr.models.criterion.losses import DetectionCriterion
from siamdetr.models.deformable.attention import DeformableAttention
from siamdetr.models.detector import Detector
from siamdetr.models.heads import each_head
from siamdetr.models.position import box_positions
from siamdetr.presets import preset_values
from siamdetr.pretext.batches import ViewBatch
from siamdetr.pretext.siamese import SiameseDETR
from siamdetr.settings.detector import DetectorSettings, LossSettings
from siamdetr.settings.pretext import SiameseSettings
from siamdetr.settings.training import OptimizerSettings
from siamdetr.structures.model import Memory, Outputs
from siamdetr.structures.targets import Targets
from siamdetr.training.optim import build_optimizer
from siamdetr.training.pretrain_module import class_agnostic

FORMS: dict[str, dict[str, object]] = {
    "single": {},
    "multi": {"levels": 4},
    "refine": {"levels": 3, "refine": True},
    "two-stage": {"levels": 4, "refine": True, "two_stage": True},
    "dab": {"variant": "dab_deformable", "levels": 3, "num_patterns": 1},
    "dn": {"variant": "dn_deformable", "levels": 4},
}
BOXES = ["dab", "dn"]  # whose queries are boxes
REGIONS = 3


def detector(form: str, **changes: object) -> Detector:
    """A small one whose outputs depend on everything."""
    torch.manual_seed(0)
    values = {
        "variant": "deformable", "backbone": "resnet18", "num_classes": 3, "num_queries": 6, "dim": 64, "heads": 4,
        "encoder_layers": 1, "decoder_layers": 2, "feedforward": 32, "dropout": 0.0,
    }  # fmt: skip
    made = Detector(DetectorSettings.model_validate(values | FORMS[form] | changes)).eval()
    for parameter in made.box_head.parameters():
        nn.init.normal_(parameter, std=0.2)
    for module in made.modules():
        if isinstance(module, DeformableAttention):
            nn.init.normal_(module.offsets.weight, std=0.1)
            nn.init.normal_(module.weights.weight, std=0.3)
    return made


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("form", BOXES)
@torch.no_grad()
def test_more_padding_changes_the_query_position_of_boxes_alone(form: str) -> None:
    """As in the official code, the position is that of the box in the padded level.

    All else refers to the unpadded image.
    """
    model, (images, padding) = detector(form), padded_batch()
    memory, queries = model.encode(images[:1], padding[:1]), model.queries(1)
    width = 64 / 96  # of the padded width
    positions: list[Tensor] = []
    model.decoder.layers[0].register_forward_pre_hook(lambda _, inputs: positions.append(inputs[1]))
    model.decode(queries, memory)
    assert queries.anchors is not None
    shrunk = queries.anchors * torch.tensor([width, 1.0, width, 1.0])
    close(positions[0], model.decoder.position_head(box_positions(shrunk, 64)))


def test_queries_that_are_no_boxes_are_refused() -> None:
    model = detector("dab")
    queries = dataclasses.replace(model.queries(1), anchors=torch.zeros(1, 6, 2))
    with pytest.raises(ValueError, match=r"expected queries with anchors \[B, Q, 4\], got \[1, 6, 2\]"):
        model.decode(queries, model.encode(torch.randn(1, 3, 64, 64)))


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_attention_is_drawn_on_the_finest_level_and_changes_nothing(form: str) -> None:
    model, (images, padding) = detector(form), padded_batch()
    plain = model(images, padding)
    with record_attention(model) as maps:
        watched = model(images, padding)
    close(watched.boxes, plain.boxes)
    grid = (4, 3) if form == "single" else (16, 12)
    assert [tuple(one.shape) for one in maps] == [(3, 4, 6, *grid)] * 2
    for one in maps:
        total = one.sum((-2, -1))
        assert total.max() <= 1 + 1e-5
        assert total.mean() > 0.2


@pytest.mark.parametrize("form", FORMS)
def test_training_reaches_every_parameter_also_without_objects(form: str) -> None:
    model, (images, padding) = detector(form).train(), padded_batch()
    criterion = DetectionCriterion(
        LossSettings(), "focal", 3, num_layers=2, proposals=bool(FORMS[form].get("two_stage", False))
    )
    for counts in ((2, 0, 1), (0, 0, 0)):
        targets = Targets(torch.rand(sum(counts), 4) * 0.5 + 0.2, torch.ones(sum(counts), dtype=torch.int64), counts)
        losses = criterion(model(images, padding), targets)
        weighted_sum(losses, criterion.weights).backward()
    without = [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
    assert without == []


def test_proposals_that_are_missing_or_too_few_are_refused() -> None:
    criterion = DetectionCriterion(LossSettings(), "focal", 3, num_layers=2, proposals=True)
    targets = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (0,))
    with pytest.raises(ValueError, match="expected the encoder's proposals of a two-stage detector, got none"):
        criterion(detector("multi")(torch.randn(1, 3, 64, 64)), targets)
    model = detector("two-stage", num_queries=500)
    queries = dataclasses.replace(model.queries(1), attention_mask=torch.zeros(500, 500, dtype=torch.bool))
    with pytest.raises(
        ValueError, match="500 queries are chosen from the feature cells, got 85 cells; take larger images"
    ):
        model.decode(queries, model.encode(torch.randn(1, 3, 64, 64)))


def test_of_an_image_with_fewer_cells_than_queries_every_cell_is_a_query() -> None:
    outputs = detector("two-stage", num_queries=500)(torch.randn(2, 3, 64, 64))
    assert outputs.logits.shape[1:3] == (2, 85)
    assert outputs.boxes.shape[1:3] == (2, 85)


def test_queries_without_position_are_refused() -> None:
    model = detector("single")
    queries = dataclasses.replace(model.queries(1), position=None)
    with pytest.raises(ValueError, match=r"deformable decoder: expected queries with a position .* got None"):
        model.decode(queries, model.encode(torch.randn(1, 3, 64, 64)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "deformable", "levels": 2}, "levels is 2, expected 1 .* or 3 to 5"),
        ({"variant": "deformable", "two_stage": True}, "two_stage is on and refine is off"),
        ({"variant": "dab_deformable", "two_stage": True}, "the queries of 'dab_deformable' start from learned boxes"),
        (
            {"variant": "vanilla", "levels": 4},
            "levels: only the variants 'deformable', .* have such a setting, not 'vanilla'",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectorSettings.model_validate(changes)


@torch.no_grad()
def test_first_boxes_lie_on_their_references_and_are_small() -> None:
    values = {"variant": "deformable", "backbone": "resnet18", "dim": 64, "heads": 4, "levels": 3, "refine": True}
    outputs = Detector(DetectorSettings.model_validate(values | {"decoder_layers": 2}))(torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(outputs.boxes[..., 2:], torch.full((2, 1, 100, 2), 1 / (1 + 2.718281828**2)))
    torch.testing.assert_close(outputs.boxes[0], outputs.boxes[1])


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
@torch.no_grad()
def test_a_pyramid_has_three_maps_and_folds(name: str) -> None:
    backbone = Backbone(name, pyramid=True).eval()
    image = torch.randn(1, 3, 96, 70)
    maps = backbone(image)
    assert [tuple(one.shape[1:]) for one in maps] == [
        (channels, *(-(-side // stride) for side in (96, 70)))
        for channels, stride in zip(backbone.channels, (8, 16, 32), strict=True)
    ]
    for ours, folded in zip(maps, fold_batchnorm(backbone)(image), strict=True):
        torch.testing.assert_close(folded, ours, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="to have a feature map of stride 16 and 16"):
        Backbone("tf_efficientnet_lite0", stride=16, pyramid=True)


def views(count: int) -> ViewBatch:
    """View 1 of all samples, then view 2 of all; the second half of the samples is padded."""
    make = torch.Generator().manual_seed(3)
    low = torch.rand(2 * count, REGIONS, 2, generator=make) * 0.5
    images, padding = torch.randn(2 * count, 3, 64, 96, generator=make), torch.zeros(2 * count, 64, 96).bool()
    sizes = torch.tensor([[64, 96]]).repeat(2 * count, 1)
    padding[::2, :, 64:], sizes[::2, 1] = True, 64
    return ViewBatch(
        images=images.masked_fill(padding[:, None], 0.0),
        padding=padding,
        boxes=xyxy_to_cxcywh(torch.cat([low, low + 0.2 + 0.3 * torch.rand(low.shape, generator=make)], dim=-1)),
        sizes=sizes,
        crops=torch.randn(2 * count, REGIONS, 3, 32, 32, generator=make),
    )


def pretext(form: str) -> SiameseDETR:
    model = detector(form, num_classes=2, classifier="softmax")
    return SiameseDETR(model, SiameseSettings(num_regions=REGIONS, crop_size=32))


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_pretraining_gives_every_image_its_own_queries_whatever_the_batch(form: str) -> None:
    """The official code gives the whole batch the queries of the first image."""
    model, batch = pretext(form).eval(), views(3)
    together, pooled = model.predict(batch)
    permuted, _ = model.predict(chosen(batch, [2, 0, 1]))
    close(permuted.boxes, together.boxes[:, [2, 0, 1, 5, 3, 4]])
    single, alone = model.predict(chosen(batch, [1]))
    close(single.boxes, together.boxes[:, [1, 4]])
    close(single.logits, together.logits[:, [1, 4]])
    close(alone, pooled[[1, 4]])
    assert pooled.shape == (6, 64 if form == "single" else 192)


@pytest.mark.parametrize("form", FORMS)
def test_pretraining_trains_all_but_the_frozen_backbone_and_is_finetuned(form: str) -> None:
    model = pretext(form).train()
    losses = model(views(2))
    assert ("loss_bbox_enc" in losses) == (form == "two-stage")
    weighted_sum(losses, model.loss_weights).backward()
    assert {name for name, one in model.named_parameters() if one.requires_grad and one.grad is None} == set()
    one_class = class_agnostic(model.detector).eval()
    outputs = one_class(torch.randn(1, 3, 64, 64))
    assert outputs.logits.shape[-1] == 2
    reloaded = Detector(one_class.settings).eval()
    reloaded.load_state_dict(one_class.state_dict())
    assert len(each_head(reloaded.class_head)) == len(each_head(one_class.class_head))


def test_layers_that_say_where_to_look_learn_slower() -> None:
    settings = OptimizerSettings(lr=1e-3, lr_backbone=1e-4, sampling_factor=0.1)
    model = detector("multi")
    slow = build_optimizer(model, settings, fused=False).param_groups[1]
    assert slow["lr"] == pytest.approx(1e-4)
    wanted = [p for name, p in model.named_parameters() if ".offsets." in name or ".reference_head." in name]
    assert len(slow["params"]) == len(wanted) == 2 * (1 + 2) + 2


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("deformable-ss", 1),
        ("deformable", 4),
        ("deformable-refine", 4),
        ("deformable-twostage", 4),
        ("siamese-imagenet-deformable", 4),
        ("dab-deformable", 4),
        ("dn-deformable", 4),
        ("siamese-coco-dab-deformable", 4),
        ("siamese-coco-dn-deformable", 4),
        ("small-dn-deformable", 3),
    ],
)
def test_presets_build_their_form(name: str, levels: int) -> None:
    values = preset_values(name, stage="pretrain" if "siamese" in name else "finetune")["detector"]
    settings = DetectorSettings.model_validate(values)
    assert settings.two_stage == ("twostage" in name)
    assert settings.levels == levels
    heads = each_head(Detector(settings).class_head)
    assert (len(heads) > 1) == any(word in name for word in ("refine", "twostage", "dab", "dn"))
    if "dab" in name or "dn" in name:
        assert settings.variant == f"{'dab' if 'dab' in name else 'dn'}_deformable"
        assert settings.dropout == 0


@torch.no_grad()
def test_memory_of_several_levels_keeps_their_order() -> None:
    memory: Memory = detector("multi").encode(torch.randn(1, 3, 75, 100))
    assert memory.shapes == ((10, 13), (5, 7), (3, 4), (2, 2))
    assert memory.tokens.shape == memory.position.shape == (1, 130 + 35 + 12 + 4, 64)
    assert isinstance(detector("multi")(torch.randn(1, 3, 75, 100)), Outputs)
