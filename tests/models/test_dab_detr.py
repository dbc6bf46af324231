"""DAB-DETR: queries are boxes, refined from layer to layer; and properties of DN-DETR at any size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.anchor_detectors import VARIANTS, close, detector, images

from siamdetr.boxes import inverse_sigmoid
from siamdetr.models.attention import record_attention
from siamdetr.models.dab_detr import REFERENCE_EPS
from siamdetr.models.position import box_positions, point_positions
from siamdetr.settings.detector import DetectorSettings
from siamdetr.structures.model import Queries


def test_the_position_of_a_box_starts_with_that_of_its_centre() -> None:
    boxes = torch.tensor([[0.2, 0.7, 0.1, 0.4]])
    waves = box_positions(boxes, 8)
    assert waves.shape == (1, 16)
    close(waves[:, :8], point_positions(boxes[:, :2], 8))
    angle = 2 * math.pi * 0.1  # of the width, after (y, x)
    close(waves[0, 8:10], torch.tensor([math.sin(angle), math.cos(angle)]))


def test_first_references_are_the_anchors_and_each_layer_moves_the_one_before() -> None:
    model = detector("dab").eval()
    torch.nn.init.normal_(model.decoder.norm.weight)
    memory, queries = model.encode(images()), model.queries(2)
    decoded = model.decoder(queries, memory, model.heads)
    assert decoded.references.shape == (3, 2, 6, 4)
    close(decoded.references[0], queries.anchors)
    assert (decoded.references[1] - decoded.references[0]).abs().max() > 0.01
    boxes = model.decode(queries, memory).boxes
    offsets = model.box_head(decoded.hidden)
    close(boxes, (offsets + inverse_sigmoid(decoded.references, REFERENCE_EPS)).sigmoid())
    assert not torch.allclose(boxes[0], decoded.references[1])  # the reference comes from the output before the norm


def test_references_carry_a_gradient_of_one_step_only() -> None:
    model = detector("dab")
    decoded = model.decoder(model.queries(2), model.encode(images()), model.heads)
    assert decoded.references.requires_grad
    with torch.no_grad():
        for layer in model.decoder.layers:  # cut what goes from layer to layer as content
            layer.feedforward.norm.weight.zero_()
    decoded = model.decoder(model.queries(2), model.encode(images()), model.heads)
    anchors = model.learned_queries.anchors.weight
    (step,) = torch.autograd.grad(decoded.references[1].sum(), anchors, retain_graph=True)
    (further,) = torch.autograd.grad(decoded.references[2].sum(), anchors)
    assert step.abs().max() > 0
    assert further.abs().max() == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_is_recorded_and_sums_to_one(variant: str) -> None:
    model = detector(variant).eval()
    with record_attention(model) as maps:
        watched = model(images()).boxes
    assert [tuple(one.shape) for one in maps] == [(2, 2, 6, 2, 3)] * 3
    close(maps[-1].sum((-2, -1)), torch.ones(2, 2, 6))
    close(watched, model(images()).boxes)


@pytest.mark.parametrize("variant", VARIANTS)
def test_patterns_ask_every_box_once_each(variant: str) -> None:
    queries: Queries = detector(variant, num_patterns=3).queries(2)
    assert queries.content.shape == (2, 18, 32)
    assert queries.anchors is not None
    close(queries.anchors[:, :6], queries.anchors[:, 12:])
    close(queries.content[:, 0], queries.content[:, 5])
    assert not torch.allclose(queries.content[:, 5], queries.content[:, 6])


@pytest.mark.parametrize("changes", [{"encoder_layers": 0}, {"decoder_layers": 1}, {"activation": "relu"}, {"dim": 64}])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_of_any_size_learns(variant: str, changes: dict[str, Any]) -> None:
    model = detector(variant, **changes)
    outputs = model(images())
    (outputs.boxes.sum() + outputs.logits.sum()).backward()
    idle = {name for name, one in model.named_parameters() if one.requires_grad and one.grad is None}
    without_layers = {"encoder_layers": "encoder.position_scale", "decoder_layers": "decoder.spatial_scale"}
    assert all(name.startswith(without_layers.get(next(iter(changes)), "-")) for name in idle)


def test_the_variant_brings_its_activation_and_its_temperature() -> None:
    assert DetectorSettings(variant="dn").own_activation == "prelu"
    assert DetectorSettings(variant="dab", activation="relu").own_activation == "relu"
    assert DetectorSettings(variant="dab").own_position_temperature == 20
    assert DetectorSettings(variant="vanilla").own_activation == "relu"
    assert DetectorSettings(variant="conditional").own_position_temperature == 10000


def test_queries_without_boxes_are_refused() -> None:
    model = detector("dab")
    points = Queries(content=torch.zeros(1, 6, 32), position=None, anchors=torch.zeros(1, 6, 2))
    with pytest.raises(
        ValueError, match=r"expected queries with anchors \[B, Q, 4\], got \[1, 6, 2\]; take detector.quer"
    ):
        model.decode(points, model.encode(images(1)))
