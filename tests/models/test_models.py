"""What every variant of the detector promises."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from helpers.detectors import LastLayer, padded_batch
from torch import nn

from siamdetr.models.attention import record_attention
from siamdetr.models.detector import Detector, Outputs
from siamdetr.models.position import full_image_positions, image_positions
from siamdetr.settings.detector import DetectorSettings

VARIANTS = ["vanilla", "conditional"]  # dense attention, one level, a learned position; others have files of their own


def small(variant: str, **changes: object) -> DetectorSettings:
    values = {
        "variant": variant, "backbone": "resnet18", "num_classes": 3, "num_queries": 6, "dim": 64, "heads": 4,
        "encoder_layers": 1, "decoder_layers": 2, "feedforward": 64, "dropout": 0.0,
    }  # fmt: skip
    return DetectorSettings.model_validate(values | changes)


def build(variant: str, **changes: object) -> Detector:
    """A small detector whose outputs depend on everything: the last box layer is not zero."""
    torch.manual_seed(0)
    detector = Detector(small(variant, **changes)).eval()
    for parameter in detector.box_head.parameters():
        nn.init.normal_(parameter, std=0.2)
    return detector


def assert_same(a: Outputs, b: Outputs, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a.logits, b.logits, rtol=0, atol=tolerance)
    torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=tolerance)
    torch.testing.assert_close(a.hidden, b.hidden, rtol=0, atol=tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_recorded_attention_sums_to_one_and_changes_nothing(variant: str) -> None:
    detector, (images, padding) = build(variant), padded_batch()
    plain = detector(images, padding)
    with record_attention(detector) as maps:
        detector(images[:1], padding[:1])
        watched = detector(images, padding)
    assert_same(watched, plain)
    assert [tuple(m.shape) for m in maps] == [(3, 4, 6, 4, 3)] * 2  # [B, heads, Q, H, W] of the second pass
    for weights in maps:
        torch.testing.assert_close(weights.sum((-2, -1)), torch.ones(3, 4, 6))
        assert weights[0, :, :, :, 2:].max() == 0  # padded cells of the narrow image
    detector(images)
    assert len(maps) == 2, "recording ends with the block"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "changes",
    [
        {"num_queries": 1, "decoder_layers": 1, "encoder_layers": 0},
        {"dim": 32, "heads": 2, "decoder_layers": 3},
        {"classifier": "softmax", "num_classes": 1},
        {"stride": 16},
    ],
    ids=["one query", "narrow", "softmax", "stride 16"],
)
@torch.no_grad()
def test_other_settings_and_sizes(variant: str, changes: dict[str, object]) -> None:
    detector = build(variant, **changes)
    settings = detector.settings
    for height, width in [(64, 64), (33, 100)]:
        with record_attention(detector) as maps:
            outputs = detector(torch.randn(2, 3, height, width))
        layers, queries = settings.decoder_layers, settings.num_queries
        logits = settings.num_classes + (settings.classifier == "softmax")
        assert outputs.logits.shape == (layers, 2, queries, logits)
        assert outputs.boxes.shape == (layers, 2, queries, 4)
        assert outputs.hidden.shape == (layers, 2, queries, settings.dim)
        assert ((outputs.boxes >= 0) & (outputs.boxes <= 1)).all()
        cells = (math.ceil(height / settings.stride), math.ceil(width / settings.stride))
        assert maps[-1].shape[-2:] == cells


@pytest.mark.parametrize("variant", VARIANTS)
def test_region_features_in_the_query_position_reach_boxes_and_gradients(variant: str) -> None:
    detector = build(variant)
    queries, memory = detector.queries(2), detector.encode(torch.randn(2, 3, 64, 64))
    assert queries.position is not None
    regions = torch.randn(2, 6, 64, requires_grad=True)
    moved = detector.decode(dataclasses.replace(queries, position=queries.position + regions), memory)
    assert (moved.boxes - detector.decode(queries, memory).boxes).abs().max() > 1e-3
    moved.boxes.sum().backward()
    assert regions.grad is not None
    assert regions.grad.abs().sum() > 0


def test_conditional_boxes_start_at_references_that_follow_the_query_position() -> None:
    """The box head's last layer starts at zero, so first centres are the reference points."""
    torch.manual_seed(0)
    detector = Detector(small("conditional"))
    queries = detector.queries(1)
    assert queries.position is not None
    queries = dataclasses.replace(queries, position=queries.position + torch.randn(1, 6, 64))
    outputs = detector.decode(queries, detector.encode(torch.randn(1, 3, 64, 64)))
    expected = detector.decoder.reference_head(queries.position).sigmoid()
    torch.testing.assert_close(outputs.boxes[:, :, :, :2], expected.expand(2, -1, -1, -1))
    torch.testing.assert_close(outputs.boxes[..., 2:], torch.full((2, 1, 6, 2), 0.5))


def test_focal_loss_starts_at_its_prior() -> None:
    head = Detector(small("conditional", classifier="focal")).class_head
    torch.testing.assert_close(head.bias.sigmoid(), torch.full((3,), 0.01))
    assert Detector(small("vanilla", classifier="softmax")).class_head.bias.abs().max() < 1


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_masked_queries_do_not_see_each_other(variant: str) -> None:
    detector = build(variant)
    memory, queries = detector.encode(torch.randn(1, 3, 64, 64)), detector.queries(1)
    assert queries.position is not None
    mask = torch.zeros(6, 6).bool()
    mask[:3, 3:] = True  # the first three must not look at the others
    queries = dataclasses.replace(queries, attention_mask=mask)
    changed = queries.position.clone()
    changed[:, 3:] += 1
    a, b = detector.decode(queries, memory), detector.decode(dataclasses.replace(queries, position=changed), memory)
    torch.testing.assert_close(a.hidden[:, :, :3], b.hidden[:, :, :3])
    assert (a.hidden[:, :, 3:] - b.hidden[:, :, 3:]).abs().max() > 1e-3


@torch.no_grad()
def test_an_image_that_is_all_padding_stays_finite() -> None:
    for variant in VARIANTS:
        outputs = build(variant)(torch.zeros(1, 3, 64, 64), torch.ones(1, 64, 64).bool())
        assert outputs.boxes.isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_trainable_parameter_gets_a_gradient(variant: str) -> None:
    detector = build(variant)
    outputs = detector(torch.randn(2, 3, 64, 64))
    (outputs.boxes.sum() + outputs.logits.square().sum()).backward()
    without = [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    frozen = {name.split(".")[2] for name, p in detector.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_boxes_are_float32_in_bfloat16(variant: str) -> None:
    detector, images = build(variant), torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = detector(images)
    assert outputs.boxes.dtype == torch.float32
    assert detector.bfloat16()(images.bfloat16()).boxes.dtype == torch.float32


def test_positions_without_mask_equal_those_of_an_empty_mask() -> None:
    positions = full_image_positions((3, 5), 16, device=torch.device("cpu"))
    torch.testing.assert_close(positions, image_positions(torch.zeros(1, 3, 5).bool(), 16))


def test_a_width_that_does_not_divide_among_heads_is_refused() -> None:
    with pytest.raises(ValueError, match=r"divisible by 4 and by the 5 heads, got 64; change 'dim' or 'heads'"):
        Detector(small("vanilla", heads=5))


@pytest.mark.parametrize("variant", VARIANTS)
def test_queries_without_position_are_refused(variant: str) -> None:
    detector = build(variant)
    queries = dataclasses.replace(detector.queries(1), position=None)
    with pytest.raises(ValueError, match=rf"{variant} decoder: expected queries with a position .* got None"):
        detector.decode(queries, detector.encode(torch.randn(1, 3, 64, 64)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@torch.no_grad()
def test_exports_with_dynamic_batch_height_and_width(variant: str) -> None:
    model = LastLayer(build(variant, decoder_layers=1))
    batch, height, width = (
        torch.export.Dim(n, min=a, max=b) for n, a, b in [("b", 1, 9), ("h", 64, 999), ("w", 64, 999)]
    )
    images, padding = padded_batch()
    program = torch.export.export(
        model, (images, padding), dynamic_shapes=({0: batch, 2: height, 3: width}, {0: batch, 1: height, 2: width})
    )
    other = torch.randn(1, 3, 75, 130)
    mask = torch.zeros(1, 75, 130).bool()
    mask[:, :, 90:] = True
    for found, expected in zip(program.module()(other, mask), model(other, mask), strict=True):
        torch.testing.assert_close(found, expected)
